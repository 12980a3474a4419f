// Takes the weight stream apart: for each row tile the parameters of its rows, then one weight tile for each k tile.
//
// Parameters come in groups of LANES rows (7 bytes a row: bias, mantissa, shift), each group in whole beats; they go to
// `params`, two row tiles deep. Weight tiles, each in whole beats, go to the array's shadow registers; when a tile is
// complete, `full` rises and the stream waits until `start` takes the tile.
module quasar_weights #(
    parameter int PW = 64,
    parameter int BEATS_HIGH = 8,
    parameter int BEATS_LOW = 8,
    parameter int GROUPS_HIGH = 1,
    parameter int GROUPS_LOW = 1,
    parameter int GROUP_BITS = 448,
    parameter int GROUP_W = 1,
    parameter int INDEX_W = 8
) (
    input  logic                  clk,
    input  logic                  rst,
    input  logic                  begin_gemm,
    input  logic [15:0]           k_tiles,
    input  logic [15:0]           tiles_high,
    input  logic [15:0]           tiles_low,
    input  logic                  w_valid,
    output logic                  w_ready,
    input  logic [PW-1:0]         w_data,
    // beats for the array, one cycle after they were taken
    output logic                  beat_valid,
    output logic [INDEX_W-1:0]    beat_index,
    output logic [PW-1:0]         beat_data,
    // the tile in the shadow registers
    input  logic                  start,
    output logic                  full,
    output logic                  tile_high,
    output logic                  tile_first,   // of its row tile
    output logic                  tile_last,
    output logic                  tile_slot,    // where the parameters of its row tile are
    output logic                  tile_final,   // of the product
    // parameters of a group, one enabled cycle after the address
    input  logic                  param_enable,
    input  logic                  param_slot,
    input  logic [GROUP_W-1:0]    param_group,
    output logic [GROUP_BITS-1:0] params
);
    localparam int PARAM_BEATS = (GROUP_BITS + PW - 1) / PW;

    logic               active, high, header, slot;
    logic [15:0]        left_high, left_low, k;
    logic [INDEX_W-1:0] beat;
    logic [GROUP_W-1:0] group;

    assign w_ready = active && (!full || start);
    wire fire = w_valid && w_ready;
    wire last_param = beat == INDEX_W'(PARAM_BEATS - 1);
    wire last_group = group == (high ? GROUP_W'(GROUPS_HIGH - 1) : GROUP_W'(GROUPS_LOW - 1));
    wire last_weight = beat == (high ? INDEX_W'(BEATS_HIGH - 1) : INDEX_W'(BEATS_LOW - 1));
    wire last_k = k == k_tiles - 1'b1;
    wire last_row = high ? left_high == 16'd1 && left_low == '0 : left_low == 16'd1;
    wire complete = fire && !header && last_weight;

    always_ff @(posedge clk) begin
        if (rst) begin
            active <= 1'b0;
            full <= 1'b0;
        end else begin
            if (complete) full <= 1'b1;
            else if (start) full <= 1'b0;
            if (begin_gemm) active <= 1'b1;
            else if (complete && last_k && last_row) active <= 1'b0;
        end

        if (begin_gemm) begin
            high <= tiles_high != '0;
            left_high <= tiles_high;
            left_low <= tiles_low;
            k <= '0;
            header <= 1'b1;
            slot <= 1'b0;
            beat <= '0;
            group <= '0;
        end else if (fire) begin
            beat <= (header ? last_param : last_weight) ? '0 : beat + 1'b1;
            if (header && last_param) begin
                group <= last_group ? '0 : group + 1'b1;
                header <= !last_group;
            end
            if (complete) begin
                k <= last_k ? '0 : k + 1'b1;
                if (last_k) begin
                    header <= 1'b1;
                    slot <= !slot;
                    if (high) left_high <= left_high - 1'b1;
                    else left_low <= left_low - 1'b1;
                    if (left_high == 16'd1) high <= 1'b0;
                end
                tile_high <= high;
                tile_first <= k == '0;
                tile_last <= last_k;
                tile_slot <= slot;
                tile_final <= last_k && last_row;
            end
        end
    end

    // Registered, so that the first beat of a tile reaches the shadow registers as the tile before leaves them.
    logic               param_valid, param_write, group_slot, write_slot;
    logic [GROUP_W-1:0] group_index, write_group;
    always_ff @(posedge clk) begin
        beat_valid <= fire && !header && !rst;
        param_valid <= fire && header && !rst;
        beat_index <= beat;
        beat_data <= w_data;
        group_slot <= slot;
        group_index <= group;
        param_write <= param_valid && beat_index == INDEX_W'(PARAM_BEATS - 1);
        write_slot <= group_slot;
        write_group <= group_index;
    end

    logic [PARAM_BEATS*PW-1:0] assembled;
    for (genvar i = 0; i < PARAM_BEATS; i++) begin : g_param
        always_ff @(posedge clk) if (param_valid && beat_index == INDEX_W'(i)) assembled[i*PW+:PW] <= beat_data;
    end
    quasar_memory #(.WIDTH(GROUP_BITS), .DEPTH(2 << GROUP_W)) entries (
        .clk, .write(param_write), .write_address({write_slot, write_group}), .write_data(assembled[GROUP_BITS-1:0]),
        .read(param_enable), .read_address({param_slot, param_group}), .read_data(params)
    );
endmodule
