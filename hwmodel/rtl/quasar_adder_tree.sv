// Sum of N signed terms of IN_W bits: a tree of two-input adders with a register after each level.
// Latency: $clog2(N) cycles.
module quasar_adder_tree #(
    parameter int N = 8,
    parameter int IN_W = 18,
    localparam int LEVELS = $clog2(N),
    localparam int OUT_W = IN_W + LEVELS
) (
    input  logic                clk,
    input  logic [N*IN_W-1:0]   terms,
    output logic [OUT_W-1:0]    sum
);
    for (genvar level = 0; level <= LEVELS; level++) begin : g_level
        localparam int COUNT = (N + (1 << level) - 1) >> level;
        logic [COUNT*OUT_W-1:0] nodes;
        for (genvar i = 0; i < COUNT; i++) begin : g_node
            if (level == 0) begin : g_leaf
                assign nodes[i*OUT_W+:OUT_W] = {{LEVELS + 1{terms[i*IN_W+IN_W-1]}}, terms[i*IN_W+:IN_W-1]};
            end else if (2 * i + 1 < (N + (1 << (level - 1)) - 1) >> (level - 1)) begin : g_pair
                always_ff @(posedge clk)
                    nodes[i*OUT_W+:OUT_W] <= g_level[level-1].nodes[2*i*OUT_W+:OUT_W]
                                           + g_level[level-1].nodes[(2*i+1)*OUT_W+:OUT_W];
            end else begin : g_single
                always_ff @(posedge clk) nodes[i*OUT_W+:OUT_W] <= g_level[level-1].nodes[2*i*OUT_W+:OUT_W];
            end
        end
    end
    assign sum = g_level[LEVELS].nodes;
endmodule
