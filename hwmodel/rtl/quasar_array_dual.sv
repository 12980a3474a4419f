// P_M x P_K DSPs of the `dual` backend: 2 * P_M rows of 8 bits, or 3 * P_M rows of 4 bits, times P_K inputs per cycle.
//
// Row j * P_M + p of a tile is code j of the DSPs (p, *). A weight tile arrives input by input: the codes of all rows
// for input 0, then for input 1, ...; beats go into shadow registers, and `swap` puts the whole tile to use.
// The sums of `act` appear 3 + $clog2(P_K) cycles after it.
module quasar_array_dual #(
    parameter int P_M = 8,
    parameter int P_K = 8,
    parameter int PW = 64,
    parameter int INDEX_W = 8,
    parameter int SUM_W = 32,
    localparam int ROWS = 3 * P_M
) (
    input  logic                   clk,
    input  logic                   beat_valid,
    input  logic [INDEX_W-1:0]     beat_index,
    input  logic [PW-1:0]          beat_data,
    input  logic                   swap,
    input  logic                   swap_high,
    input  logic [8*P_K-1:0]       act,
    input  logic                   act_high,
    input  logic                   act_unsigned,  // activations are 0 to 255; stands still while a product runs
    output logic [ROWS*SUM_W-1:0]  sums
);
    localparam int BEATS = (16 * P_M * P_K + PW - 1) / PW;
    localparam int LEVELS = $clog2(P_K);

    logic [BEATS*PW-1:0] shadow;
    for (genvar i = 0; i < BEATS; i++) begin : g_beat
        always_ff @(posedge clk) if (beat_valid && beat_index == INDEX_W'(i)) shadow[i*PW+:PW] <= beat_data;
    end

    // the kind travels with the activations: one cycle to the input registers of the DSPs, one to their products
    logic a_high, p_high;
    always_ff @(posedge clk) begin
        a_high <= act_high;
        p_high <= a_high;
    end

    for (genvar p = 0; p < P_M; p++) begin : g_row
        logic [P_K*18-1:0] fields0, fields1;
        logic [P_K*11-1:0] fields2;
        for (genvar k = 0; k < P_K; k++) begin : g_input
            quasar_dsp_dual dsp (
                .clk, .swap, .swap_high,
                .high0(shadow[8*(2*P_M*k+p)+:8]),
                .high1(shadow[8*(2*P_M*k+P_M+p)+:8]),
                .low0(shadow[4*(3*P_M*k+p)+:4]),
                .low1(shadow[4*(3*P_M*k+P_M+p)+:4]),
                .low2(shadow[4*(3*P_M*k+2*P_M+p)+:4]),
                .act({!act_unsigned && act[8*k+7], act[8*k+:8]}),
                .product_high(p_high),
                .field0(fields0[18*k+:18]),
                .field1(fields1[18*k+:18]),
                .field2(fields2[11*k+:11])
            );
        end
        logic [17+LEVELS:0] sum0, sum1;
        logic [10+LEVELS:0] sum2;
        quasar_adder_tree #(.N(P_K), .IN_W(18)) tree0 (.clk, .terms(fields0), .sum(sum0));
        quasar_adder_tree #(.N(P_K), .IN_W(18)) tree1 (.clk, .terms(fields1), .sum(sum1));
        quasar_adder_tree #(.N(P_K), .IN_W(11)) tree2 (.clk, .terms(fields2), .sum(sum2));
        assign sums[SUM_W*p+:SUM_W] = SUM_W'($signed(sum0));
        assign sums[SUM_W*(P_M+p)+:SUM_W] = SUM_W'($signed(sum1));
        assign sums[SUM_W*(2*P_M+p)+:SUM_W] = SUM_W'($signed(sum2));
    end
endmodule
