// Floor of the square root of a 2 * W-bit number, one bit of the root per stage. Latency: W enabled cycles.
module quasar_isqrt #(
    parameter int W = 26
) (
    input  logic           clk,
    input  logic           enable,
    input  logic [2*W-1:0] value,
    output logic [W-1:0]   root
);
    // Of the number, what is left to bring down lies at the top; the remainder is at most twice the root.
    logic [(W+1)*2*W-1:0]   numbers;
    logic [(W+1)*(W+2)-1:0] remainders;
    logic [(W+1)*W-1:0]     roots;
    assign numbers[2*W-1:0] = value;
    assign remainders[W+1:0] = '0;
    assign roots[W-1:0] = '0;
    for (genvar i = 0; i < W; i++) begin : g_stage
        logic [2*W-1:0] number, next_number;
        logic [W+1:0]   remainder, next_remainder, brought, trial, difference;
        logic [W-1:0]   so_far, next_root;
        assign number = numbers[i*2*W+:2*W];
        assign remainder = remainders[i*(W+2)+:W+2];
        assign so_far = roots[i*W+:W];
        assign brought = {remainder[W-1:0], number[2*W-1-:2]};
        assign trial = {so_far, 2'b01};
        assign difference = brought - trial;
        wire fits = !difference[W+1];  // a new remainder is at most twice the new root, so below 2^(W+1)
        always_ff @(posedge clk)
            if (enable) begin
                next_number <= number << 2;
                next_remainder <= fits ? difference : brought;
                next_root <= {so_far[W-2:0], fits};
            end
        assign numbers[(i+1)*2*W+:2*W] = next_number;
        assign remainders[(i+1)*(W+2)+:W+2] = next_remainder;
        assign roots[(i+1)*W+:W] = next_root;
    end
    assign root = roots[W*W+:W];
endmodule
