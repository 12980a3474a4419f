// A memory with one write port and one read port: `read_data` is the word of `read_address` one clock after `read`.
// A word that is written in the clock in which it is read is read as it was before.
//
// What it is made of is a rule of this module and not left to a tool; hwmodel/resources.py counts by the same rule.
//   * Up to 64 words: distributed RAM (SLICEM LUTs: 8 of them hold 32 x 14 or 64 x 7 bits), and a register.
//   * More words: a grid of 18 Kb block RAMs, all of the one shape, among those that they have, that takes the fewest;
//     of several such shapes the deepest, which leaves the smallest multiplexer behind the rows of the grid.
module quasar_memory #(
    parameter int WIDTH = 32,
    parameter int DEPTH = 256,
    localparam int ADDRESS_W = DEPTH > 1 ? $clog2(DEPTH) : 1
) (
    input  logic                 clk,
    input  logic                 write,
    input  logic [ADDRESS_W-1:0] write_address,
    input  logic [WIDTH-1:0]     write_data,
    input  logic                 read,
    input  logic [ADDRESS_W-1:0] read_address,
    output logic [WIDTH-1:0]     read_data
);
    // blocks of each shape
    localparam int B36 = ((WIDTH + 35) / 36) * ((DEPTH + 511) / 512);
    localparam int B18 = ((WIDTH + 17) / 18) * ((DEPTH + 1023) / 1024);
    localparam int B9 = ((WIDTH + 8) / 9) * ((DEPTH + 2047) / 2048);
    localparam int B4 = ((WIDTH + 3) / 4) * ((DEPTH + 4095) / 4096);
    localparam int B2 = ((WIDTH + 1) / 2) * ((DEPTH + 8191) / 8192);
    localparam int B1 = WIDTH * ((DEPTH + 16383) / 16384);
    localparam int L18 = B18 <= B36 ? B18 : B36;    // fewest of this shape and the wider ones
    localparam int L9 = B9 <= L18 ? B9 : L18;
    localparam int L4 = B4 <= L9 ? B4 : L9;
    localparam int L2 = B2 <= L4 ? B2 : L4;
    localparam int BANK_WIDTH = B1 <= L2 ? 1 : B2 <= L4 ? 2 : B4 <= L9 ? 4 : B9 <= L18 ? 9 : B18 <= B36 ? 18 : 36;
    localparam int LINE_W = BANK_WIDTH == 36 ? 9 : BANK_WIDTH == 18 ? 10 : BANK_WIDTH == 9 ? 11
                          : BANK_WIDTH == 4 ? 12 : BANK_WIDTH == 2 ? 13 : 14;
    localparam int BANK_DEPTH = 1 << LINE_W;
    localparam int COLUMNS = (WIDTH + BANK_WIDTH - 1) / BANK_WIDTH;
    localparam int ROWS = (DEPTH + BANK_DEPTH - 1) / BANK_DEPTH;
    localparam int ROW_W = ADDRESS_W - LINE_W;

    if (DEPTH <= 64) begin : g_distributed
        (* ram_style = "distributed" *) logic [WIDTH-1:0] words [DEPTH];
        always_ff @(posedge clk) begin
            if (write) words[write_address] <= write_data;
            if (read) read_data <= words[read_address];
        end
    end else begin : g_block
        logic [ROWS*WIDTH-1:0] row_data;
        if (ROWS == 1) begin : g_one
            assign read_data = row_data;
        end else begin : g_several
            logic [ROW_W-1:0] row;
            always_ff @(posedge clk) if (read) row <= read_address[ADDRESS_W-1:LINE_W];
            always_comb begin
                read_data = '0;
                for (int i = 0; i < ROWS; i++) if (row == ROW_W'(i)) read_data = row_data[i*WIDTH+:WIDTH];
            end
        end

        for (genvar r = 0; r < ROWS; r++) begin : g_row
            localparam int LINES = DEPTH - r * BANK_DEPTH < BANK_DEPTH ? DEPTH - r * BANK_DEPTH : BANK_DEPTH;
            localparam int WORD_W = LINES > 1 ? $clog2(LINES) : 1;
            wire write_here;
            if (ROWS == 1) begin : g_only
                assign write_here = write;
            end else begin : g_selected
                assign write_here = write && write_address[ADDRESS_W-1:LINE_W] == ROW_W'(r);
            end
            for (genvar c = 0; c < COLUMNS; c++) begin : g_column
                localparam int BITS = WIDTH - c * BANK_WIDTH < BANK_WIDTH ? WIDTH - c * BANK_WIDTH : BANK_WIDTH;
                (* ram_style = "block" *) logic [BITS-1:0] words [LINES];
                logic [BITS-1:0] data;
                always_ff @(posedge clk) begin
                    if (write_here) words[write_address[WORD_W-1:0]] <= write_data[c*BANK_WIDTH+:BITS];
                    if (read) data <= words[read_address[WORD_W-1:0]];
                end
                assign row_data[r*WIDTH+c*BANK_WIDTH+:BITS] = data;
            end
        end
    end
endmodule
