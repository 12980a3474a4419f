// A shift register of CYCLES enabled cycles, without reset, so that it maps to shift-register LUTs.
module quasar_delay #(
    parameter int W = 8,
    parameter int CYCLES = 1
) (
    input  logic         clk,
    input  logic         enable,
    input  logic [W-1:0] in,
    output logic [W-1:0] out
);
    if (CYCLES == 0) begin : g_none
        assign out = in;
    end else if (CYCLES == 1) begin : g_one
        always_ff @(posedge clk) if (enable) out <= in;
    end else begin : g_line
        logic [CYCLES*W-1:0] line;
        always_ff @(posedge clk) if (enable) line <= {line[(CYCLES-1)*W-1:0], in};
        assign out = line[(CYCLES-1)*W+:W];
    end
endmodule
