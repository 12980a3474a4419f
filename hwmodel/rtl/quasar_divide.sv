// floor((dividend << Q) / divisor) for dividend < divisor: Q bits of the quotient, one per stage.
// Latency: Q enabled cycles. A divisor of 0 gives some quotient.
module quasar_divide #(
    parameter int W = 24,
    parameter int Q = 17
) (
    input  logic         clk,
    input  logic         enable,
    input  logic [W-1:0] dividend,
    input  logic [W-1:0] divisor,
    output logic [Q-1:0] quotient
);
    logic [(Q+1)*W-1:0] remainders, divisors;
    logic [(Q+1)*Q-1:0] quotients;
    assign remainders[W-1:0] = dividend;
    assign divisors[W-1:0] = divisor;
    assign quotients[Q-1:0] = '0;
    for (genvar i = 0; i < Q; i++) begin : g_stage
        logic [W-1:0] by, next_by, next_remainder;
        logic [W:0]   brought, difference;
        logic [Q-1:0] so_far, next_quotient;
        assign by = divisors[i*W+:W];
        assign brought = {remainders[i*W+:W], 1'b0};
        assign so_far = quotients[i*Q+:Q];
        assign difference = brought - {1'b0, by};
        wire fits = !difference[W];    // brought is below twice the divisor
        always_ff @(posedge clk)
            if (enable) begin
                next_by <= by;
                next_remainder <= fits ? difference[W-1:0] : brought[W-1:0];
                next_quotient <= {so_far[Q-2:0], fits};
            end
        assign divisors[(i+1)*W+:W] = next_by;
        assign remainders[(i+1)*W+:W] = next_remainder;
        assign quotients[(i+1)*Q+:Q] = next_quotient;
    end
    assign quotient = quotients[Q*Q+:Q];
endmodule
