// P_M x P_K DSPs of the `atomic` backend: P_M rows of 8 bits, or 2 * P_M rows of 4 bits, times P_K inputs per cycle.
//
// The DSPs (p, 0) to (p, P_K - 1) are one cascade, which adds up packed products without any adder in the fabric. So
// everything of input k happens k cycles later than for input 0: activations, swaps of the weights, and beats of the
// weight stream, which travel along the array with them. Nobody outside sees this: no load and no swap has to wait.
// Row j * P_M + p of a tile is code j of the DSPs (p, *); a weight tile arrives input by input as in the dual array.
// The sums of `act` appear 3 + P_K cycles after it.
module quasar_array_atomic #(
    parameter int P_M = 8,
    parameter int P_K = 8,
    parameter int PW = 64,
    parameter int INDEX_W = 8,
    parameter int SUM_W = 32,
    localparam int ROWS = 2 * P_M
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
    localparam int BITS = 8 * P_M;  // weights of one input, of either kind

    for (genvar k = 0; k < P_K; k++) begin : g_input
        logic               valid, swapping, swapping_high;
        logic [INDEX_W-1:0] index;
        logic [PW-1:0]      data;
        logic [7:0]         a;
        if (k == 0) begin : g_first
            assign valid = beat_valid;
            assign index = beat_index;
            assign data = beat_data;
            assign swapping = swap;
            assign swapping_high = swap_high;
            assign a = act[7:0];
        end else begin : g_later
            always_ff @(posedge clk) begin
                valid <= g_input[k-1].valid;
                index <= g_input[k-1].index;
                data <= g_input[k-1].data;
                swapping <= g_input[k-1].swapping;
                swapping_high <= g_input[k-1].swapping_high;
            end
            logic [8*k-1:0] waiting;
            if (k == 1) begin : g_one
                always_ff @(posedge clk) waiting <= act[15:8];
            end else begin : g_more
                always_ff @(posedge clk) waiting <= {act[8*k+:8], waiting[8*k-1:8]};
            end
            assign a = waiting[7:0];
        end

        logic [BITS-1:0] shadow;
        for (genvar i = k * BITS / PW; i <= (k * BITS + BITS - 1) / PW; i++) begin : g_beat
            localparam int FROM = i * PW > k * BITS ? i * PW : k * BITS;
            localparam int TO = (i + 1) * PW < (k + 1) * BITS ? (i + 1) * PW : (k + 1) * BITS;
            always_ff @(posedge clk)
                if (valid && index == INDEX_W'(i)) shadow[FROM-k*BITS+:TO-FROM] <= data[FROM-i*PW+:TO-FROM];
        end

        logic [48*P_M-1:0] cascade;
        for (genvar p = 0; p < P_M; p++) begin : g_row
            // of a high tile the codes are bytes, of a low tile two runs of nibbles: rows p and P_M + p
            logic [7:0] codes;
            assign codes = swapping_high ? shadow[8*p+:8] : {shadow[4*(P_M+p)+:4], shadow[4*p+:4]};
            logic signed [47:0] above;
            if (k == 0) begin : g_head
                assign above = 48'sd0;
            end else begin : g_chain
                assign above = g_input[k-1].cascade[48*p+:48];
            end
            quasar_dsp_atomic dsp (
                .clk, .swap(swapping), .swap_high(swapping_high), .codes, .act({!act_unsigned && a[7], a}),
                .cascade_in(above), .cascade_out(cascade[48*p+:48])
            );
        end
    end

    logic [P_K+1:0] high;  // the kind of each product, from the DSPs' input registers to the end of the cascade
    always_ff @(posedge clk) high <= {high[P_K:0], act_high};

    for (genvar p = 0; p < P_M; p++) begin : g_sum
        logic signed [21:0] field0, field1;
        assign field0 = g_input[P_K-1].cascade[48*p+:22];
        assign field1 = g_input[P_K-1].cascade[48*p+22+:22] + 22'(g_input[P_K-1].cascade[48*p+21]);
        always_ff @(posedge clk) begin
            sums[SUM_W*p+:SUM_W] <= high[P_K+1] ? (SUM_W'(field1) <<< 4) + SUM_W'(field0) : SUM_W'(field0);
            sums[SUM_W*(P_M+p)+:SUM_W] <= SUM_W'(field1);
        end
    end
endmodule
