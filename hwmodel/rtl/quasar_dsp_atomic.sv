// One DSP48E2 of the `atomic` backend: two 4-bit atoms times one activation, added to the cascade.
//
//     P = cascade + ((u1 * a) << 22) + u0 * a
// The atoms are two rows' 4-bit codes, or the halves of one row's 8-bit code w = 16 * u1 + u0 with u0 in 0..15.
// A field holds sums from -2^21 to 2^21 - 1. Of signed activations |u * a| <= 15 * 2^7, so 1,092 products add up before
// it could overflow (2,340 of codes within [-7, 7]). Of unsigned ones u * a <= 15 * 255: 548 products, the longest P_K.
module quasar_dsp_atomic (
    input  logic               clk,
    input  logic               swap,
    input  logic               swap_high,
    input  logic [7:0]         codes,
    input  logic signed [8:0]  act,
    input  logic signed [47:0] cascade_in,
    output logic signed [47:0] cascade_out
);
    logic signed [26:0] weights;
    logic signed [8:0]  a;
    logic signed [35:0] m;

    wire signed [4:0] atom0 = {!swap_high && codes[3], codes[3:0]};
    wire signed [4:0] atom1 = {codes[7], codes[7:4]};

    always_ff @(posedge clk) begin
        if (swap) weights <= (27'(atom1) <<< 22) + 27'(atom0);
        a <= act;
        m <= weights * a;
        cascade_out <= cascade_in + 48'(m);
    end
endmodule
