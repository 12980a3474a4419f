// The engine of matrix products and the vector unit side by side, as a bundle's test bench and synthesis take them.
//
// Ports `gemm_*` are those of quasar_gemm, `vector_*` those of quasar_vector. The factors of a softmax go from the vector
// unit straight into the engine's memory, where the product of numerators and values takes them. There is no sequencer:
// who gives the commands also moves the codes from an output to the next input.
module quasar_accelerator #(
    parameter int P_M = 8,
    parameter int P_K = 8,
    parameter int BACKEND = 0,
    parameter int PW = 64,
    parameter int PA = 64,
    parameter int PO = 64,
    parameter int MAX_TOKENS = 256,
    parameter int ACT_WORDS = 1024,
    parameter int LANES = 8,
    parameter int MAX_WIDTH = 1024
) (
    input  logic                clk,
    input  logic                rst,

    input  logic                gemm_cmd_valid,
    output logic                gemm_cmd_ready,
    input  logic                gemm_cmd_gemm,
    input  logic [$clog2(ACT_WORDS):0] gemm_cmd_words,
    input  logic [15:0]         gemm_cmd_tokens,
    input  logic [15:0]         gemm_cmd_k_tiles,
    input  logic [15:0]         gemm_cmd_tiles_high,
    input  logic [15:0]         gemm_cmd_tiles_low,
    input  logic                gemm_cmd_stream,
    input  logic                gemm_cmd_table,
    input  logic                gemm_cmd_symmetric,
    input  logic                gemm_cmd_unsigned,
    input  logic                gemm_cmd_wide,
    input  logic                gemm_cmd_token_factor,
    input  logic                gemm_table_write,
    input  logic [7:0]          gemm_table_address,
    input  logic [7:0]          gemm_table_data,
    input  logic                gemm_a_valid,
    output logic                gemm_a_ready,
    input  logic [PA-1:0]       gemm_a_data,
    input  logic                gemm_w_valid,
    output logic                gemm_w_ready,
    input  logic [PW-1:0]       gemm_w_data,
    output logic                gemm_o_valid,
    input  logic                gemm_o_ready,
    output logic                gemm_o_last,
    output logic [2*PO-1:0]     gemm_o_data,

    input  logic                vector_cmd_valid,
    output logic                vector_cmd_ready,
    input  logic [1:0]          vector_cmd_op,
    input  logic [15:0]         vector_cmd_rows,
    input  logic [15:0]         vector_cmd_width,
    input  logic [15:0]         vector_cmd_numerator,
    input  logic [6:0]          vector_cmd_exponent,
    input  logic [39:0]         vector_cmd_epsilon,
    input  logic [24:0]         vector_cmd_mean_factor,
    input  logic [4:0]          vector_cmd_mean_shift,
    input  logic [4:0]          vector_cmd_out_shift,
    input  logic                vector_table_write,
    input  logic [7:0]          vector_table_address,
    input  logic [7:0]          vector_table_data,
    input  logic                vector_x_valid,
    output logic                vector_x_ready,
    input  logic [16*LANES-1:0] vector_x_data,
    input  logic                vector_y_valid,
    output logic                vector_y_ready,
    input  logic [16*LANES-1:0] vector_y_data,
    input  logic                vector_p_valid,
    output logic                vector_p_ready,
    input  logic [PW-1:0]       vector_p_data,
    output logic                vector_f_valid,
    output logic [15:0]         vector_f_row,
    output logic [15:0]         vector_f_mantissa,
    output logic [5:0]          vector_f_shift,
    output logic                vector_o_valid,
    input  logic                vector_o_ready,
    output logic                vector_o_last,
    output logic [16*LANES-1:0] vector_o_data
);
    localparam int TOKEN_W = MAX_TOKENS > 1 ? $clog2(MAX_TOKENS) : 1;

    quasar_gemm #(
        .P_M(P_M), .P_K(P_K), .BACKEND(BACKEND), .PW(PW), .PA(PA), .PO(PO), .MAX_TOKENS(MAX_TOKENS),
        .ACT_WORDS(ACT_WORDS)
    ) gemm (
        .clk, .rst,
        .cmd_valid(gemm_cmd_valid), .cmd_ready(gemm_cmd_ready), .cmd_gemm(gemm_cmd_gemm), .cmd_words(gemm_cmd_words),
        .cmd_tokens(gemm_cmd_tokens), .cmd_k_tiles(gemm_cmd_k_tiles), .cmd_tiles_high(gemm_cmd_tiles_high),
        .cmd_tiles_low(gemm_cmd_tiles_low), .cmd_stream(gemm_cmd_stream), .cmd_table(gemm_cmd_table),
        .cmd_symmetric(gemm_cmd_symmetric), .cmd_unsigned(gemm_cmd_unsigned), .cmd_wide(gemm_cmd_wide),
        .cmd_token_factor(gemm_cmd_token_factor),
        .table_write(gemm_table_write), .table_address(gemm_table_address), .table_data(gemm_table_data),
        .factor_write(vector_f_valid), .factor_address(vector_f_row[TOKEN_W-1:0]),
        .factor_mantissa(vector_f_mantissa), .factor_shift(vector_f_shift),
        .a_valid(gemm_a_valid), .a_ready(gemm_a_ready), .a_data(gemm_a_data),
        .w_valid(gemm_w_valid), .w_ready(gemm_w_ready), .w_data(gemm_w_data),
        .o_valid(gemm_o_valid), .o_ready(gemm_o_ready), .o_last(gemm_o_last), .o_data(gemm_o_data)
    );
    quasar_vector #(.LANES(LANES), .PW(PW), .MAX_TOKENS(MAX_TOKENS), .MAX_WIDTH(MAX_WIDTH)) vector_unit (
        .clk, .rst,
        .cmd_valid(vector_cmd_valid), .cmd_ready(vector_cmd_ready), .cmd_op(vector_cmd_op), .cmd_rows(vector_cmd_rows),
        .cmd_width(vector_cmd_width), .cmd_numerator(vector_cmd_numerator), .cmd_exponent(vector_cmd_exponent),
        .cmd_epsilon(vector_cmd_epsilon), .cmd_mean_factor(vector_cmd_mean_factor),
        .cmd_mean_shift(vector_cmd_mean_shift), .cmd_out_shift(vector_cmd_out_shift),
        .table_write(vector_table_write), .table_address(vector_table_address), .table_data(vector_table_data),
        .x_valid(vector_x_valid), .x_ready(vector_x_ready), .x_data(vector_x_data),
        .y_valid(vector_y_valid), .y_ready(vector_y_ready), .y_data(vector_y_data),
        .p_valid(vector_p_valid), .p_ready(vector_p_ready), .p_data(vector_p_data),
        .f_valid(vector_f_valid), .f_row(vector_f_row), .f_mantissa(vector_f_mantissa), .f_shift(vector_f_shift),
        .o_valid(vector_o_valid), .o_ready(vector_o_ready), .o_last(vector_o_last), .o_data(vector_o_data)
    );
endmodule
