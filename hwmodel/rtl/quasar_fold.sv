// Sum, or maximum, of N signed terms of W bits, W enough for the result: a tree with a register after each level.
// Latency: $clog2(N) enabled cycles.
module quasar_fold #(
    parameter int N = 8,
    parameter int W = 8,
    parameter int MAXIMUM = 0          // 0 sum, 1 maximum
) (
    input  logic           clk,
    input  logic           enable,
    input  logic [N*W-1:0] terms,
    output logic [W-1:0]   result
);
    localparam int LEAVES = 1 << $clog2(N);
    localparam logic [W-1:0] NEUTRAL = MAXIMUM == 1 ? {1'b1, {W - 1{1'b0}}} : '0;

    // As in a heap: node i has the children 2i and 2i + 1, nodes from LEAVES on are the terms, node 1 is the result.
    logic [LEAVES*W-1:0] leaves;
    for (genvar i = 0; i < LEAVES; i++) begin : g_leaf
        if (i < N) begin : g_term
            assign leaves[i*W+:W] = terms[i*W+:W];
        end else begin : g_none
            assign leaves[i*W+:W] = NEUTRAL;
        end
    end
    if (LEAVES == 1) begin : g_one
        assign result = leaves;
    end else begin : g_tree
        logic [LEAVES*W-1:W] nodes;
        for (genvar i = 1; i < LEAVES; i++) begin : g_node
            logic signed [W-1:0] a, b;
            if (2 * i >= LEAVES) begin : g_bottom
                assign a = leaves[(2*i-LEAVES)*W+:W];
                assign b = leaves[(2*i+1-LEAVES)*W+:W];
            end else begin : g_inner
                assign a = nodes[2*i*W+:W];
                assign b = nodes[(2*i+1)*W+:W];
            end
            if (MAXIMUM == 1) begin : g_max
                always_ff @(posedge clk) if (enable) nodes[i*W+:W] <= a > b ? a : b;
            end else begin : g_sum
                always_ff @(posedge clk) if (enable) nodes[i*W+:W] <= a + b;
            end
        end
        assign result = nodes[W+:W];
    end
endmodule
