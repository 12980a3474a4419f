// One lane of the drain: code = table[clip(((sum + bias) * mantissa + 2^(shift - 1)) >> shift)], shift in 1..47.
// Codes have 8 bits, sign-extended to the 16 of the port, or all 16, and then no table.
// Latency: 7 enabled cycles. The product of 32 and 16 bits takes two DSPs and their inner register.
module quasar_requant (
    input  logic        clk,
    input  logic        enable,
    input  logic        use_table,
    input  logic        wide,          // codes of 16 bits
    input  logic        symmetric,     // the least code is minus the greatest one, instead of one less
    input  logic [31:0] sum,
    input  logic [31:0] bias,
    input  logic [15:0] mantissa,
    input  logic [5:0]  shift,
    input  logic        table_write,
    input  logic [7:0]  table_address,
    input  logic [7:0]  table_data,
    output logic [15:0] code
);
    logic signed [31:0] biased;
    logic signed [16:0] mantissa1;
    logic signed [48:0] product2, product3;
    logic signed [49:0] rounded, shifted;
    logic [5:0]         shift1, shift2, shift3, shift4;
    logic [15:0]        clipped;
    logic [7:0]         entries [256];

    wire signed [49:0] greatest = wide ? 50'sd32767 : 50'sd127;
    wire signed [49:0] least = symmetric ? -greatest : ~greatest;
    wire [7:0] entry = entries[clipped[7:0]];

    always_ff @(posedge clk) begin
        if (table_write) entries[table_address] <= table_data;
        if (enable) begin
            biased <= sum + bias;
            mantissa1 <= {1'b0, mantissa};
            shift1 <= shift;

            product2 <= biased * mantissa1;
            shift2 <= shift1;

            product3 <= product2;
            shift3 <= shift2;

            rounded <= 50'(product3) + (50'sd1 <<< (shift3 - 6'd1));
            shift4 <= shift3;

            shifted <= rounded >>> shift4;

            if (shifted > greatest) clipped <= greatest[15:0];
            else if (shifted < least) clipped <= least[15:0];
            else clipped <= shifted[15:0];

            code <= use_table ? {{8{entry[7]}}, entry} : clipped;
        end
    end
endmodule
