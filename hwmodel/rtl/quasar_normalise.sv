// Shifts a number left until its highest bit is set, and says how far: result = value << count.
// One power of two per stage, the largest first. Latency: $clog2(W) enabled cycles. Zero stays zero.
module quasar_normalise #(
    parameter int W = 24,
    localparam int STAGES = $clog2(W)
) (
    input  logic              clk,
    input  logic              enable,
    input  logic [W-1:0]      value,
    output logic [W-1:0]      result,
    output logic [STAGES-1:0] count
);
    logic [(STAGES+1)*W-1:0]      values;
    logic [(STAGES+1)*STAGES-1:0] counts;
    assign values[W-1:0] = value;
    assign counts[STAGES-1:0] = '0;
    for (genvar i = 0; i < STAGES; i++) begin : g_stage
        localparam int BY = 1 << (STAGES - 1 - i);
        logic [W-1:0]      now, next_value;
        logic [STAGES-1:0] so_far, next_count;
        assign now = values[i*W+:W];
        assign so_far = counts[i*STAGES+:STAGES];
        wire empty = now[W-1-:BY] == '0;
        always_ff @(posedge clk)
            if (enable) begin
                next_value <= empty ? now << BY : now;
                next_count <= {so_far[STAGES-2:0], empty};
            end
        assign values[(i+1)*W+:W] = next_value;
        assign counts[(i+1)*STAGES+:STAGES] = next_count;
    end
    assign result = values[STAGES*W+:W];
    assign count = counts[STAGES*STAGES+:STAGES];
endmodule
