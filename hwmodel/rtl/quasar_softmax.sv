// The exponentials of rows of scores, E = table[max - q], and for each row the factor that normalises it behind the
// matrix product with the values: mantissa * 2^-shift ~ numerator * 2^-exponent / sum E (hwmodel/integer_vector.py).
//
// A row is read twice: for its maximum as it comes, then from `elements` while the maximum of the next row is found.
// The exponentials wait in a shift register until the factor of their row can be known, so that all factors have been
// written when the last output is handed over. With LEVELS = $clog2(LANES), in enabled cycles:
//     a row's last beat to its maximum     2 + LEVELS
//     maximum to first exponential         3
//     exponential to sum of the row        1 + LEVELS
//     sum to factor                        23                 normalise, divide, pack
// so its first output comes 29 + 2 * LEVELS cycles after its last beat was taken. All stands still while it waits.
module quasar_softmax #(
    parameter int LANES = 8,
    parameter int MAX_TOKENS = 256
) (
    input  logic                clk,
    input  logic                rst,
    input  logic                start,
    input  logic [15:0]         rows,
    input  logic [15:0]         width,
    input  logic [15:0]         numerator,
    input  logic [6:0]          exponent,

    input  logic                table_write,
    input  logic [7:0]          table_address,
    input  logic [7:0]          table_data,

    input  logic                x_valid,
    output logic                x_ready,
    input  logic [8*LANES-1:0]  x_data,

    output logic                f_valid,      // once for each row
    output logic [15:0]         f_row,
    output logic [15:0]         f_mantissa,
    output logic [5:0]          f_shift,

    output logic                o_valid,
    input  logic                o_ready,
    output logic                o_last,
    output logic [8*LANES-1:0]  o_data
);
    localparam int LEVELS = $clog2(LANES);
    localparam int ROW_BEATS = (MAX_TOKENS + LANES - 1) / LANES;
    localparam int DEPTH = 1 << $clog2(ROW_BEATS + LEVELS + 4);
    localparam int NORMALISE = 5;
    localparam int QUOTIENT = 17;
    localparam int FACTOR = NORMALISE + QUOTIENT + 1;         // from the sum
    localparam int OUTPUT = LEVELS + 1 + FACTOR;              // from the exponential

    wire enable = !o_valid || o_ready;

    // --- the scores as they come: masked, maximum of a beat, maximum of the row
    logic               active, in_first, in_last, in_final;
    logic [LANES-1:0]   in_keep;
    assign x_ready = active && enable;
    wire take = x_valid && x_ready;
    quasar_beats #(.LANES(LANES)) in_beats (
        .clk, .rst, .start, .rows, .width, .step(take), .active,
        .first(in_first), .last(in_last), .final_beat(in_final), .keep(in_keep)
    );

    logic [8*LANES-1:0] scores;
    for (genvar i = 0; i < LANES; i++) begin : g_score
        always_ff @(posedge clk) if (enable) scores[8*i+:8] <= in_keep[i] ? x_data[8*i+:8] : 8'h80;
    end
    logic [LEVELS:0]   valids, firsts, lasts;   // with the scores, and after each level of the tree
    logic signed [7:0] beat_maximum, maximum;
    quasar_fold #(.N(LANES), .W(8), .MAXIMUM(1)) maximum_tree (.clk, .enable, .terms(scores), .result(beat_maximum));
    wire row_end = valids[LEVELS] && lasts[LEVELS];
    logic signed [7:0] best, so_far;
    assign best = firsts[LEVELS] || beat_maximum > so_far ? beat_maximum : so_far;

    // --- the same scores again, with the maximum
    logic               reading, out_active, out_first, out_last, out_final;
    logic [LANES-1:0]   out_keep;
    logic [8*LANES-1:0] again;
    quasar_beats #(.LANES(LANES)) out_beats (
        .clk, .rst, .start, .rows, .width, .step(enable && reading), .active(out_active),
        .first(out_first), .last(out_last), .final_beat(out_final), .keep(out_keep)
    );
    quasar_elements #(.W(8 * LANES), .DEPTH(DEPTH)) elements (
        .clk, .enable, .start, .write(valids[0]), .write_data(scores), .read(reading), .read_data(again)
    );

    // Index 0: the score is there again; 1: its distance; 2: its exponential.
    logic [2:0]         out_valids, out_firsts, out_lasts, out_finals;
    logic [2*LANES-1:0] out_keeps;
    logic signed [7:0]  row_maximum;
    always_ff @(posedge clk) begin
        if (rst) begin
            valids <= '0;
            reading <= 1'b0;
            out_valids <= '0;
        end else if (enable) begin
            valids <= (LEVELS + 1)'({valids, take});
            if (row_end) reading <= 1'b1;
            else if (out_last) reading <= 1'b0;
            out_valids <= {out_valids[1:0], reading};
        end
        if (enable) begin
            firsts <= (LEVELS + 1)'({firsts, in_first});
            lasts <= (LEVELS + 1)'({lasts, in_last});
            if (valids[LEVELS]) so_far <= best;
            if (row_end) maximum <= best;
            row_maximum <= maximum;
            out_firsts <= {out_firsts[1:0], out_first};
            out_lasts <= {out_lasts[1:0], out_last};
            out_finals <= {out_finals[1:0], out_final};
            out_keeps <= {out_keeps[LANES-1:0], out_keep};
        end
    end

    logic [8*LANES-1:0] exponentials;
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        logic [7:0] distance;
        (* ram_style = "distributed" *) logic [7:0] entries [256];
        always_ff @(posedge clk) if (table_write) entries[table_address] <= table_data;
        always_ff @(posedge clk)
            if (enable) begin
                distance <= row_maximum - again[8*i+:8];
                exponentials[8*i+:8] <= out_keeps[LANES+i] ? entries[distance] : '0;
            end
    end

    // --- outputs
    localparam int LEVELS_W = 8 + LEVELS + 1;
    logic [OUTPUT-1:0] o_valids;
    quasar_delay #(.W(8 * LANES + 1), .CYCLES(OUTPUT)) wait_for_factor (
        .clk, .enable, .in({out_finals[2], exponentials}), .out({o_last, o_data})
    );
    assign o_valid = o_valids[OUTPUT-1];

    // --- sum of the row, and its factor
    logic [LANES*LEVELS_W-1:0] terms;
    for (genvar i = 0; i < LANES; i++) begin : g_term
        assign terms[LEVELS_W*i+:LEVELS_W] = LEVELS_W'(exponentials[8*i+:8]);
    end
    logic [LEVELS_W-1:0] beat_sum;
    quasar_fold #(.N(LANES), .W(LEVELS_W), .MAXIMUM(0)) sum_tree (.clk, .enable, .terms, .result(beat_sum));
    logic sum_first, sum_last;
    quasar_delay #(.W(2), .CYCLES(LEVELS)) sum_flags (
        .clk, .enable, .in({out_firsts[2], out_lasts[2]}), .out({sum_first, sum_last})
    );
    logic        beat_sum_valid;
    logic [23:0] sum;
    if (LEVELS == 0) begin : g_flat
        assign beat_sum_valid = out_valids[2];
    end else begin : g_deep
        assign beat_sum_valid = o_valids[LEVELS-1];
    end

    logic [23:0] normal;
    logic [4:0]  leading, leading_later;
    logic [16:0] quotient;
    logic [FACTOR-1:0] row_ends;      // the sum is complete, and then the stages of its factor
    quasar_normalise #(.W(24)) normalise (.clk, .enable, .value(sum), .result(normal), .count(leading));
    quasar_divide #(.W(24), .Q(QUOTIENT)) divide (
        .clk, .enable, .dividend({1'b0, numerator, 7'b0}), .divisor(normal), .quotient
    );
    quasar_delay #(.W(5), .CYCLES(QUOTIENT)) delay (.clk, .enable, .in(leading), .out(leading_later));

    logic f_there;
    always_ff @(posedge clk) begin
        if (rst) begin
            o_valids <= '0;
            row_ends <= '0;
            f_there <= 1'b0;
        end else if (enable) begin
            o_valids <= {o_valids[OUTPUT-2:0], out_valids[2]};
            row_ends <= {row_ends[FACTOR-2:0], beat_sum_valid && sum_last};
            f_there <= row_ends[FACTOR-1];
        end
        if (start) f_row <= '0;
        else if (enable && f_there) f_row <= f_row + 1'b1;
        if (enable) begin
            if (beat_sum_valid) sum <= (sum_first ? 24'd0 : sum) + 24'(beat_sum);
            f_mantissa <= quotient[16] ? quotient[16:1] : quotient[15:0];
            f_shift <= 6'(exponent + 7'd24 - {2'b0, leading_later} - {6'b0, quotient[16]});
        end
    end
    assign f_valid = f_there && enable;
endmodule
