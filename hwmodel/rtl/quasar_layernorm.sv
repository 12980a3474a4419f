// LayerNorm of rows of int16 elements, to int8 codes (hwmodel/integer_vector.py says what is computed).
//
// Statistics of the next row are taken while a row is read again from `elements` and normalised. The parameters of the
// channels come over their own stream at the beginning; a beat of the first row waits where it needs a group that has
// not come yet. All stands still while it waits, or while the output does. With LEVELS = $clog2(LANES), in cycles:
//     a row's last beat to its first output     69 + LEVELS    mask 1, statistics 55 + LEVELS, read and normalise 13
//     parameters needed after it                63 + LEVELS
//     last beat of a group to its use           2
module quasar_layernorm #(
    parameter int LANES = 8,
    parameter int PW = 64,
    parameter int MAX_WIDTH = 1024     // at most 1024
) (
    input  logic                clk,
    input  logic                rst,
    input  logic                start,
    input  logic [15:0]         rows,
    input  logic [15:0]         width,
    input  logic [39:0]         epsilon,
    input  logic [24:0]         mean_factor,
    input  logic [4:0]          mean_shift,   // 16 to 26
    input  logic [4:0]          out_shift,    // 1 to 31

    input  logic                x_valid,
    output logic                x_ready,
    input  logic [16*LANES-1:0] x_data,
    input  logic                p_valid,
    output logic                p_ready,
    input  logic [PW-1:0]       p_data,

    output logic                o_valid,
    input  logic                o_ready,
    output logic                o_last,
    output logic [8*LANES-1:0]  o_data
);
    localparam int LEVELS = $clog2(LANES);
    localparam int GROUPS = (MAX_WIDTH + LANES - 1) / LANES;
    localparam int GROUP_W = GROUPS > 1 ? $clog2(GROUPS) : 1;
    localparam int DEPTH = 1 << $clog2(GROUPS + LEVELS + 60);
    localparam int STAGES = 12;               // from a read to its output
    localparam int GAIN_STAGE = 6;

    logic enable;

    // --- elements as they come
    logic               active, in_first, in_last, in_final, first, last, valid;
    logic [LANES-1:0]   in_keep;
    logic [16*LANES-1:0] elements;
    assign x_ready = active && enable;
    wire take = x_valid && x_ready;
    quasar_beats #(.LANES(LANES)) in_beats (
        .clk, .rst, .start, .rows, .width, .step(take), .active,
        .first(in_first), .last(in_last), .final_beat(in_final), .keep(in_keep)
    );
    for (genvar i = 0; i < LANES; i++) begin : g_element
        always_ff @(posedge clk) if (enable) elements[16*i+:16] <= in_keep[i] ? x_data[16*i+:16] : '0;
    end

    logic               row_valid;
    logic signed [24:0] mean, row_mean, mean1;
    logic [16:0]        scale, row_scale, scale1, scale2;
    logic [5:0]         shift, row_shift, shift1, shift2, shift3, shift4;
    logic [2:0]         shift5;
    quasar_statistics #(.LANES(LANES)) statistics (
        .clk, .rst, .enable, .start, .width(width[10:0]), .epsilon, .mean_factor,
        .mean_shift(4'(mean_shift - 5'd16)), .valid, .first, .last, .elements, .row_valid, .mean, .scale, .shift
    );

    // --- the same elements again
    logic                reading, out_active, out_first, out_last, out_final;
    logic [LANES-1:0]    out_keep;
    logic [16*LANES-1:0] again;
    quasar_beats #(.LANES(LANES)) out_beats (
        .clk, .rst, .start, .rows, .width, .step(enable && reading), .active(out_active),
        .first(out_first), .last(out_last), .final_beat(out_final), .keep(out_keep)
    );
    quasar_elements #(.W(16 * LANES), .DEPTH(DEPTH)) elements_again (
        .clk, .enable, .start, .write(valid), .write_data(elements), .read(reading), .read_data(again)
    );

    // Bit i of these: i + 1 cycles after the read.
    logic [STAGES-1:0] valids;
    logic              gain_last, kept_final;
    logic [LANES-1:0]  kept;
    quasar_delay #(.W(1), .CYCLES(GAIN_STAGE)) last_delay (.clk, .enable, .in(out_last), .out(gain_last));
    quasar_delay #(.W(LANES + 1), .CYCLES(STAGES - 1)) keep_delay (
        .clk, .enable, .in({out_final, out_keep}), .out({kept_final, kept})
    );

    logic [GROUP_W-1:0]  group;
    logic [GROUP_W:0]    loaded;
    logic [48*LANES-1:0] channels;
    quasar_channels #(.LANES(LANES), .PW(PW), .GROUPS(GROUPS), .GROUP_W(GROUP_W)) parameters (
        .clk, .rst, .start, .width, .p_valid, .p_ready, .p_data, .loaded, .read(enable), .group, .channels
    );
    // An output is not offered while a group is missing: it could not leave its register then.
    wire missing = valids[GAIN_STAGE-1] && {1'b0, group} >= loaded;
    assign o_valid = valids[STAGES-1] && !missing;
    assign enable = (!valids[STAGES-1] || o_ready) && !missing;

    logic [42:0] half3;
    logic [31:0] half_out;
    always_ff @(posedge clk) begin
        if (rst) begin
            valid <= 1'b0;
            reading <= 1'b0;
            valids <= '0;
        end else if (enable) begin
            valid <= take;
            if (row_valid) reading <= 1'b1;
            else if (out_last) reading <= 1'b0;
            valids <= {valids[STAGES-2:0], reading};
        end
        if (start) group <= '0;
        else if (enable && valids[GAIN_STAGE-1]) group <= gain_last ? '0 : group + 1'b1;
        half_out <= 32'd1 << (out_shift - 5'd1);
        if (enable) begin
            first <= in_first;
            last <= in_last;
            if (row_valid) begin
                row_mean <= mean;
                row_scale <= scale;
                row_shift <= shift;
            end
            mean1 <= row_mean;
            scale1 <= row_scale;
            scale2 <= scale1;
            shift1 <= row_shift;
            shift2 <= shift1;
            shift3 <= shift2;
            half3 <= 43'd1 << (shift2 - 6'd1);
            shift4 <= shift3;
            shift5 <= shift4[2:0];
            o_last <= kept_final;
        end
    end

    for (genvar i = 0; i < LANES; i++) begin : g_lane
        logic signed [25:0] centred2;
        logic signed [17:0] scale_signed;
        logic signed [42:0] product3, rounded4;
        logic signed [26:0] coarse5;
        logic signed [19:0] fine6;      // zeta before its clip always fits, so the bits above need no shifter
        logic signed [17:0] zeta7;
        logic signed [15:0] gain7;
        logic signed [31:0] bias7;
        logic signed [33:0] product8;
        logic signed [33:0] bias8;
        logic signed [34:0] sum9, shifted9;
        logic signed [15:0] coarse10, fine11;
        assign gain7 = channels[48*i+:16];
        assign bias7 = channels[48*i+16+:32];
        assign scale_signed = {1'b0, scale2};
        assign shifted9 = sum9 >>> {out_shift[4:3], 3'b0};
        always_ff @(posedge clk)
            if (enable) begin
                centred2 <= $signed({{2{again[16*i+15]}}, again[16*i+:16], 8'b0}) - 26'(mean1);
                product3 <= centred2 * scale_signed;
                rounded4 <= product3 + $signed(half3);
                coarse5 <= 27'(rounded4 >>> {shift4[5:3], 3'b0});
                fine6 <= 20'(coarse5 >>> shift5);

                if (fine6 > 20'sd131071) zeta7 <= 18'sd131071;
                else if (fine6 < -20'sd131072) zeta7 <= -18'sd131072;
                else zeta7 <= fine6[17:0];

                product8 <= zeta7 * gain7;
                bias8 <= 34'(bias7) + $signed({2'b0, half_out});
                sum9 <= 35'(product8) + 35'(bias8);
                // 16 bits are enough for the 7 more places and the clip
                if (shifted9 > 35'sd32767) coarse10 <= 16'sd32767;
                else if (shifted9 < -35'sd32768) coarse10 <= -16'sd32768;
                else coarse10 <= shifted9[15:0];
                fine11 <= coarse10 >>> out_shift[2:0];
                if (!kept[i]) o_data[8*i+:8] <= '0;
                else if (fine11 > 16'sd127) o_data[8*i+:8] <= 8'h7F;
                else if (fine11 < -16'sd127) o_data[8*i+:8] <= 8'h81;
                else o_data[8*i+:8] <= fine11[7:0];
            end
    end
endmodule
