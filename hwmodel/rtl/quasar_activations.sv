// The activation buffer: words of P_K codes, read one per cycle, written from a stream of PA bits per cycle.
//
// PA is 8 * P_K divided by a whole number, or multiplied by a power of two; in the latter case several words are
// written at once. A fill of `fill_words` words starts at word 0, or at the buffer's middle if `fill_upper`.
// The word of `read_address` appears on `act` one cycle after it.
module quasar_activations #(
    parameter int P_K = 8,
    parameter int PA = 64,
    parameter int WORDS = 1024,        // even, and a multiple of twice the words in a beat
    parameter int ADDRESS_W = 10
) (
    input  logic                 clk,
    input  logic                 rst,
    input  logic                 fill_upper,
    input  logic [ADDRESS_W:0]   fill_words,
    input  logic                 fill_enable,
    output logic                 filled,       // the beat that completes the fill is being taken
    input  logic                 a_valid,
    output logic                 a_ready,
    input  logic [PA-1:0]        a_data,
    input  logic [ADDRESS_W-1:0] read_address,
    output logic [8*P_K-1:0]     act
);
    localparam int WORD = 8 * P_K;
    localparam int WIDE = PA > WORD ? PA / WORD : 1;      // words in a beat
    localparam int PARTS = PA < WORD ? WORD / PA : 1;     // beats in a word
    localparam int PART_W = PARTS > 1 ? $clog2(PARTS) : 1;
    localparam int LINES = WORDS / WIDE;
    localparam int SELECT_W = $clog2(WIDE);

    logic [PART_W-1:0]    part;
    logic [ADDRESS_W:0]   taken;       // words before the one that is being filled
    logic [WIDE*WORD-1:0] line;

    assign a_ready = fill_enable;
    wire fire = a_valid && a_ready;
    wire whole = fire && part == PART_W'(PARTS - 1);
    assign filled = whole && taken + (ADDRESS_W + 1)'(WIDE) >= fill_words;
    wire [ADDRESS_W-1:0] write_address = taken[ADDRESS_W-1:0] + (fill_upper ? ADDRESS_W'(WORDS / 2) : '0);

    if (PARTS == 1) begin : g_whole
        assign line = a_data;
    end else begin : g_parts
        logic [WORD-PA-1:0] head;
        if (PARTS == 2) begin : g_two
            always_ff @(posedge clk) if (fire) head <= a_data;
        end else begin : g_many
            always_ff @(posedge clk) if (fire) head <= {a_data, head[WORD-PA-1:PA]};
        end
        assign line = {a_data, head};
    end

    always_ff @(posedge clk) begin
        if (rst) begin
            part <= '0;
            taken <= '0;
        end else if (fire) begin
            part <= whole ? '0 : part + 1'b1;
            if (filled) taken <= '0;
            else if (whole) taken <= taken + (ADDRESS_W + 1)'(WIDE);
        end
    end

    logic [WIDE*WORD-1:0] read_line;
    quasar_memory #(.WIDTH(WIDE * WORD), .DEPTH(LINES)) lines (
        .clk, .write(whole), .write_address(write_address[ADDRESS_W-1:SELECT_W]), .write_data(line),
        .read(1'b1), .read_address(read_address[ADDRESS_W-1:SELECT_W]), .read_data(read_line)
    );
    if (WIDE == 1) begin : g_single
        assign act = read_line;
    end else begin : g_select
        logic [SELECT_W-1:0] select;
        always_ff @(posedge clk) select <= read_address[SELECT_W-1:0];
        assign act = read_line[WORD*select+:WORD];
    end
endmodule
