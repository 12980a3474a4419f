// o = clip(x + y, -32768, 32767), rows of `width` elements. Latency: 2 enabled cycles from a beat to its output.
module quasar_residual #(
    parameter int LANES = 8
) (
    input  logic                clk,
    input  logic                rst,
    input  logic                start,
    input  logic [15:0]         rows,
    input  logic [15:0]         width,

    input  logic                x_valid,
    output logic                x_ready,
    input  logic [16*LANES-1:0] x_data,
    input  logic                y_valid,
    output logic                y_ready,
    input  logic [16*LANES-1:0] y_data,

    output logic                o_valid,
    input  logic                o_ready,
    output logic                o_last,
    output logic [16*LANES-1:0] o_data
);
    logic             active, final_beat, first, last, last1, valid1;
    logic [LANES-1:0] keep, keep1;
    wire enable = !o_valid || o_ready;
    wire take = active && enable && x_valid && y_valid;
    assign x_ready = active && enable && y_valid;
    assign y_ready = active && enable && x_valid;

    quasar_beats #(.LANES(LANES)) beats (
        .clk, .rst, .start, .rows, .width, .step(take), .active, .first, .last, .final_beat, .keep
    );

    always_ff @(posedge clk) begin
        if (rst) begin
            valid1 <= 1'b0;
            o_valid <= 1'b0;
        end else if (enable) begin
            valid1 <= take;
            o_valid <= valid1;
        end
        if (enable) begin
            keep1 <= keep;
            last1 <= final_beat;
            o_last <= last1;
        end
    end

    for (genvar i = 0; i < LANES; i++) begin : g_lane
        logic [16:0] sum;
        wire [16:0] x = {x_data[16*i+15], x_data[16*i+:16]};
        wire [16:0] y = {y_data[16*i+15], y_data[16*i+:16]};
        logic [15:0] clipped;
        assign clipped = sum[16] != sum[15] ? {sum[16], {15{!sum[16]}}} : sum[15:0];
        always_ff @(posedge clk)
            if (enable) begin
                sum <= x + y;
                o_data[16*i+:16] <= keep1[i] ? clipped : '0;
            end
    end
endmodule
