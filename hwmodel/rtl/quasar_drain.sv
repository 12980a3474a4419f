// Turns the finished sums of a row tile into codes, LANES of them per cycle: token by token, groups of rows within it.
//
// `begin_drain` comes when the sum of token 0 is being written. The pipeline from address to output is 9 registers deep
// and stands still as a whole while the output waits. With `token_factor`, mantissa and shift are those of the token, from
// a memory that was written before, and of a row's parameters only the bias counts.
module quasar_drain #(
    parameter int LANES = 8,
    parameter int ROWS = 24,
    parameter int GROUPS_HIGH = 2,
    parameter int GROUPS_LOW = 3,
    parameter int GROUP_W = 2,
    parameter int MAX_TOKENS = 256,
    parameter int TOKEN_W = 8
) (
    input  logic                   clk,
    input  logic                   rst,
    input  logic                   begin_drain,
    input  logic [15:0]            tokens,
    input  logic                   high,
    input  logic                   slot,
    input  logic                   final_tile,
    output logic                   released,     // the last sum is being read: `finished` is free from the next cycle on
    input  logic                   use_table,
    input  logic                   wide,
    input  logic                   symmetric,
    input  logic                   token_factor,
    input  logic                   table_write,
    input  logic [7:0]             table_address,
    input  logic [7:0]             table_data,
    input  logic                   factor_write,
    input  logic [TOKEN_W-1:0]     factor_address,
    input  logic [15:0]            factor_mantissa,
    input  logic [5:0]             factor_shift,
    output logic                   enable,
    output logic [TOKEN_W-1:0]     drain_token,
    input  logic [ROWS*32-1:0]     drain_sums,
    output logic                   param_slot,
    output logic [GROUP_W-1:0]     param_group,
    input  logic [LANES*56-1:0]    params,
    output logic                   o_valid,
    input  logic                   o_ready,
    output logic                   o_last,
    output logic [16*LANES-1:0]    o_data
);
    localparam int GROUPS = GROUPS_HIGH > GROUPS_LOW ? GROUPS_HIGH : GROUPS_LOW;
    localparam int STAGES = 9;

    logic               active;
    logic [15:0]        token;
    logic [GROUP_W-1:0] group, read_group;
    logic [STAGES-1:0]  valid, last;

    assign enable = !o_valid || o_ready;
    wire last_group = group == (high ? GROUP_W'(GROUPS_HIGH - 1) : GROUP_W'(GROUPS_LOW - 1));
    wire last_address = last_group && token == tokens - 1'b1;
    assign released = active && enable && last_address;
    assign drain_token = token[TOKEN_W-1:0];
    assign param_slot = slot;
    assign param_group = group;
    assign o_valid = valid[STAGES-1];
    assign o_last = last[STAGES-1];

    always_ff @(posedge clk) begin
        if (rst) begin
            active <= 1'b0;
            valid <= '0;
        end else begin
            if (begin_drain) active <= 1'b1;
            else if (released) active <= 1'b0;
            if (enable) valid <= {valid[STAGES-2:0], active};
        end
        if (begin_drain) begin
            token <= '0;
            group <= '0;
        end else if (active && enable) begin
            group <= last_group ? '0 : group + 1'b1;
            if (last_group) token <= token + 1'b1;
        end
        if (enable) begin
            last <= {last[STAGES-2:0], final_tile && last_address};
            read_group <= group;
        end
    end

    logic [GROUPS*LANES*32-1:0] rows;
    if (GROUPS * LANES > ROWS) begin : g_pad
        assign rows = {{(GROUPS * LANES - ROWS) * 32{1'b0}}, drain_sums};
    end else begin : g_even
        assign rows = drain_sums;
    end

    logic [21:0] factor;
    quasar_memory #(.WIDTH(22), .DEPTH(MAX_TOKENS)) factors (
        .clk, .write(factor_write), .write_address(factor_address), .write_data({factor_shift, factor_mantissa}),
        .read(enable), .read_address(drain_token), .read_data(factor)
    );

    logic [LANES*32-1:0] lane_sums;
    always_ff @(posedge clk) if (enable) lane_sums <= rows[read_group*LANES*32+:LANES*32];
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        logic [31:0] bias;
        logic [15:0] mantissa;
        logic [5:0]  shift;
        always_ff @(posedge clk)
            if (enable) begin
                bias <= params[56*i+:32];
                mantissa <= token_factor ? factor[15:0] : params[56*i+32+:16];
                shift <= token_factor ? factor[21:16] : params[56*i+48+:6];
            end
        quasar_requant requant (
            .clk, .enable, .use_table, .wide, .symmetric, .table_write, .table_address, .table_data,
            .sum(lane_sums[32*i+:32]), .bias, .mantissa, .shift, .code(o_data[16*i+:16])
        );
    end
endmodule
