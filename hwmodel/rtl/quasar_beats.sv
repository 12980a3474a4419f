// Counts the beats of `rows` rows of `width` elements, LANES elements a beat; the last beat of a row may be ragged.
// `active` from the cycle after `start` until the last beat has been stepped over.
module quasar_beats #(
    parameter int LANES = 8
) (
    input  logic             clk,
    input  logic             rst,
    input  logic             start,
    input  logic [15:0]      rows,
    input  logic [15:0]      width,
    input  logic             step,
    output logic             active,
    output logic             first,    // of its row
    output logic             last,
    output logic             final_beat,
    output logic [LANES-1:0] keep      // elements within the width
);
    logic [15:0] full, left, left_rows;

    assign last = left <= 16'(LANES);
    assign final_beat = last && left_rows == 16'd1;
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        assign keep[i] = left > 16'(i);
    end

    always_ff @(posedge clk) begin
        if (rst) active <= 1'b0;
        else if (start) active <= 1'b1;
        else if (step && final_beat) active <= 1'b0;

        if (start) begin
            full <= width;
            left <= width;
            left_rows <= rows;
            first <= 1'b1;
        end else if (step) begin
            left <= last ? full : left - 16'(LANES);
            if (last) left_rows <= left_rows - 1'b1;
            first <= last;
        end
    end
endmodule
