// The vector unit: residual addition, softmax, LayerNorm, one operation at a time, bit for bit as
// hwmodel/integer_vector.py and cycle by cycle as hwmodel/vector_cycles.py.
//
// An operation takes `cmd_rows` rows of `cmd_width` elements (both at least 1), a row in ceil(width / LANES) beats; what
// lies beyond the width in a row's last beat is ignored, and 0 in the outputs. Elements are 16 bits wide everywhere:
//     residual    x, y int16                           o int16
//     softmax     x int8 in the lower half of a lane   o 0 to 255, and one factor for each row, written by the time
//                                                      the last output is handed over
//     layernorm   x int16, p gains and biases          o int8, sign-extended
// A command is taken while nothing runs: at the earliest in the cycle after the last output was handed over.
module quasar_vector #(
    parameter int LANES = 8,
    parameter int PW = 64,             // whole bytes
    parameter int MAX_TOKENS = 256,    // widest row of softmax
    parameter int MAX_WIDTH = 1024     // widest row of layernorm, at most 1024
) (
    input  logic                clk,
    input  logic                rst,

    input  logic                cmd_valid,
    output logic                cmd_ready,
    input  logic [1:0]          cmd_op,            // 0 residual, 1 softmax, 2 layernorm
    input  logic [15:0]         cmd_rows,
    input  logic [15:0]         cmd_width,
    input  logic [15:0]         cmd_numerator,     // softmax
    input  logic [6:0]          cmd_exponent,
    input  logic [39:0]         cmd_epsilon,       // layernorm
    input  logic [24:0]         cmd_mean_factor,
    input  logic [4:0]          cmd_mean_shift,
    input  logic [4:0]          cmd_out_shift,

    input  logic                table_write,
    input  logic [7:0]          table_address,
    input  logic [7:0]          table_data,

    input  logic                x_valid,
    output logic                x_ready,
    input  logic [16*LANES-1:0] x_data,
    input  logic                y_valid,
    output logic                y_ready,
    input  logic [16*LANES-1:0] y_data,
    input  logic                p_valid,
    output logic                p_ready,
    input  logic [PW-1:0]       p_data,

    output logic                f_valid,
    output logic [15:0]         f_row,
    output logic [15:0]         f_mantissa,
    output logic [5:0]          f_shift,

    output logic                o_valid,
    input  logic                o_ready,
    output logic                o_last,
    output logic [16*LANES-1:0] o_data
);
    // --- command: sizes go to the units as it is taken, constants are kept here
    logic        running, normalises, exponentiates;
    logic [15:0] numerator;
    logic [6:0]  exponent;
    logic [39:0] epsilon;
    logic [24:0] mean_factor;
    logic [4:0]  mean_shift, out_shift;
    assign cmd_ready = !running;
    wire take = cmd_valid && cmd_ready && !rst;
    wire start_layernorm = take && cmd_op[1];
    wire start_softmax = take && !cmd_op[1] && cmd_op[0];
    wire start_residual = take && !cmd_op[1] && !cmd_op[0];
    always_ff @(posedge clk) begin
        if (rst) running <= 1'b0;
        else if (take) running <= 1'b1;
        else if (o_valid && o_ready && o_last) running <= 1'b0;
        if (take) begin
            normalises <= cmd_op[1];
            exponentiates <= cmd_op[0];
            numerator <= cmd_numerator;
            exponent <= cmd_exponent;
            epsilon <= cmd_epsilon;
            mean_factor <= cmd_mean_factor;
            mean_shift <= cmd_mean_shift;
            out_shift <= cmd_out_shift;
        end
    end

    logic [8*LANES-1:0]  scores, exponentials, codes;
    logic [16*LANES-1:0] sums;
    logic                residual_x, softmax_x, layernorm_x;
    logic                residual_valid, softmax_valid, layernorm_valid;
    logic                residual_last, softmax_last, layernorm_last;
    assign x_ready = residual_x || softmax_x || layernorm_x;

    quasar_residual #(.LANES(LANES)) residual (
        .clk, .rst, .start(start_residual), .rows(cmd_rows), .width(cmd_width),
        .x_valid, .x_ready(residual_x), .x_data, .y_valid, .y_ready, .y_data,
        .o_valid(residual_valid), .o_ready, .o_last(residual_last), .o_data(sums)
    );
    quasar_softmax #(.LANES(LANES), .MAX_TOKENS(MAX_TOKENS)) softmax (
        .clk, .rst, .start(start_softmax), .rows(cmd_rows), .width(cmd_width), .numerator, .exponent,
        .table_write, .table_address, .table_data, .x_valid, .x_ready(softmax_x), .x_data(scores),
        .f_valid, .f_row, .f_mantissa, .f_shift,
        .o_valid(softmax_valid), .o_ready, .o_last(softmax_last), .o_data(exponentials)
    );
    quasar_layernorm #(.LANES(LANES), .PW(PW), .MAX_WIDTH(MAX_WIDTH)) layernorm (
        .clk, .rst, .start(start_layernorm), .rows(cmd_rows), .width(cmd_width),
        .epsilon, .mean_factor, .mean_shift, .out_shift,
        .x_valid, .x_ready(layernorm_x), .x_data, .p_valid, .p_ready, .p_data,
        .o_valid(layernorm_valid), .o_ready, .o_last(layernorm_last), .o_data(codes)
    );

    assign o_valid = residual_valid || softmax_valid || layernorm_valid;
    assign o_last = normalises ? layernorm_last : exponentiates ? softmax_last : residual_last;
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        wire [7:0] code = codes[8*i+:8];
        assign scores[8*i+:8] = x_data[16*i+:8];
        assign o_data[16*i+:16] = normalises ? {{8{code[7]}}, code}
                                : exponentiates ? {8'b0, exponentials[8*i+:8]} : sums[16*i+:16];
    end
endmodule
