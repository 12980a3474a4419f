// One DSP48E2 of the `dual` backend: two 8-bit codes, or three 4-bit codes, times one activation.
//
// The codes are packed into the 27-bit port with 18 or 11 bits between them, so that a product holds all of theirs:
//     high   P = (w1 * a) << 18 | w0 * a                      |w * a| <= 2^7 * 255 < 2^15, a field holds 2^17
//     low    P = (w2 * a) << 22 | (w1 * a) << 11 | w0 * a     |w * a| <= 7 * 2^7 < 2^10, a field holds no more
// So an activation may be from -128 to 255 with high codes, but must not exceed 127 with low ones: 7 * 255 > 2^10.
// (sums, not fields: a negative lower product borrows one from the field above). A field is its bits plus the bit below.
module quasar_dsp_dual (
    input  logic               clk,
    input  logic               swap,           // shadow codes become the ones in use
    input  logic               swap_high,      // their kind
    input  logic signed [7:0]  high0,
    input  logic signed [7:0]  high1,
    input  logic signed [3:0]  low0,
    input  logic signed [3:0]  low1,
    input  logic signed [3:0]  low2,
    input  logic signed [8:0]  act,
    input  logic               product_high,   // kind of the product that is in P
    output logic [17:0]        field0,
    output logic [17:0]        field1,
    output logic [10:0]        field2
);
    logic signed [26:0] weights;
    logic signed [8:0]  a;
    logic signed [35:0] p;

    wire signed [26:0] packed_high = (27'(high1) <<< 18) + 27'(high0);
    wire signed [26:0] packed_low = (27'(low2) <<< 22) + (27'(low1) <<< 11) + 27'(low0);
    wire [10:0] low1_field = p[21:11] + 11'(p[10]);

    always_ff @(posedge clk) begin
        if (swap) weights <= swap_high ? packed_high : packed_low;
        a <= act;
        p <= weights * a;
        field0 <= product_high ? p[17:0] : {{7{p[10]}}, p[10:0]};
        field1 <= product_high ? p[35:18] + 18'(p[17]) : {{7{low1_field[10]}}, low1_field};
        field2 <= p[32:22] + 11'(p[21]);
    end
endmodule
