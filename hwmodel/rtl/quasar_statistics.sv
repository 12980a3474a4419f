// What LayerNorm needs to know of a row of N int16 elements (hwmodel/integer_vector.py):
//     mean    mu with 8 fraction bits           scale   g = floor((N << zn) * 2^31 / (D << z))
//     shift   w = 27 + zn - z
// They appear 55 + $clog2(LANES) enabled cycles after the row's last elements. Rows may follow each other in every cycle.
// Elements beyond a row's width are 0.
module quasar_statistics #(
    parameter int LANES = 8
) (
    input  logic                clk,
    input  logic                rst,
    input  logic                enable,
    input  logic                start,
    input  logic [10:0]         width,
    input  logic [39:0]         epsilon,
    input  logic [24:0]         mean_factor,
    input  logic [3:0]          mean_shift,   // r - 16
    input  logic                valid,
    input  logic                first,
    input  logic                last,
    input  logic [16*LANES-1:0] elements,
    output logic                row_valid,
    output logic signed [24:0]  mean,
    output logic [16:0]         scale,
    output logic [5:0]          shift
);
    localparam int LEVELS = $clog2(LANES);
    localparam int ROOT = 26;
    localparam int NORMALISE = 5;
    localparam int QUOTIENT = 17;
    localparam int VARIANCE = 5;              // from the sums to V
    localparam int MEAN = 5;                  // from the sums to mu
    localparam int LATENCY = VARIANCE + ROOT + NORMALISE + QUOTIENT;

    // --- N << zn, and zn: there long before the first row needs them
    logic [10:0] normal_width;
    logic [3:0]  width_shift;
    always_ff @(posedge clk)
        if (start) begin
            normal_width <= width;
            width_shift <= '0;
        end else if (!normal_width[10]) begin
            normal_width <= normal_width << 1;
            width_shift <= width_shift + 1'b1;
        end

    // --- sums of a beat
    localparam int SUM_W = 16 + LEVELS;
    localparam int SQUARES_W = 32 + LEVELS;
    logic [LANES*SUM_W-1:0]     terms;
    logic [LANES*SQUARES_W-1:0] squares;
    for (genvar i = 0; i < LANES; i++) begin : g_lane
        logic signed [15:0] element;
        logic signed [31:0] square;
        assign element = elements[16*i+:16];
        logic signed [15:0] later;
        always_ff @(posedge clk)
            if (enable) begin
                later <= element;
                square <= element * element;
            end
        assign terms[SUM_W*i+:SUM_W] = SUM_W'(later);
        assign squares[SQUARES_W*i+:SQUARES_W] = SQUARES_W'(square);
    end
    logic signed [SUM_W-1:0] beat_sum;
    logic [SQUARES_W-1:0]    beat_squares;
    quasar_fold #(.N(LANES), .W(SUM_W)) sum_tree (.clk, .enable, .terms, .result(beat_sum));
    quasar_fold #(.N(LANES), .W(SQUARES_W)) squares_tree (.clk, .enable, .terms(squares), .result(beat_squares));

    logic [LEVELS:0] valids;
    logic            sum_first, sum_last;
    quasar_delay #(.W(2), .CYCLES(LEVELS + 1)) flags (.clk, .enable, .in({first, last}), .out({sum_first, sum_last}));

    // --- sums of the row: 2^25 and 2^40 at most
    logic signed [25:0] sum, so_far;
    logic [40:0]        square_sum;
    logic [LATENCY:0]   row_valids;           // index 0: with the sums
    wire [25:0] sum_before = sum_first ? 26'd0 : sum;
    wire [40:0] squares_before = sum_first ? 41'd0 : square_sum;
    assign so_far = sum_before + 26'(beat_sum);
    always_ff @(posedge clk) begin
        if (rst) begin
            valids <= '0;
            row_valids <= '0;
        end else if (enable) begin
            valids <= (LEVELS + 1)'({valids, valid});
            row_valids <= {row_valids[LATENCY-1:0], valids[LEVELS] && sum_last};
        end
        if (enable && valids[LEVELS]) begin
            sum <= so_far;
            square_sum <= squares_before + 41'(beat_squares);
        end
    end
    assign row_valid = row_valids[LATENCY];

    // --- V = N * s2 - s1^2 + epsilon, in pieces that fit a DSP
    logic signed [26:0] magnitude;
    logic signed [17:0] magnitude_low;
    logic signed [9:0]  magnitude_high;
    logic signed [26:0] squares_low;
    logic signed [15:0] squares_high;
    logic signed [11:0] n;
    logic signed [44:0] own_low;
    logic signed [36:0] own_high;
    logic signed [38:0] wide_low;
    logic signed [27:0] wide_high;
    logic [51:0]        own, own_later, wide, wide_epsilon, variance;
    wire [25:0] absolute = sum[25] ? -sum : sum;
    always_ff @(posedge clk) begin
        if (start) n <= {1'b0, width};
        if (enable) begin
            magnitude <= {1'b0, absolute};
            magnitude_low <= {1'b0, absolute[16:0]};
            magnitude_high <= {1'b0, absolute[25:17]};
            squares_low <= {1'b0, square_sum[25:0]};
            squares_high <= {1'b0, square_sum[40:26]};

            own_low <= magnitude * magnitude_low;
            own_high <= magnitude * magnitude_high;
            wide_low <= squares_low * n;
            wide_high <= squares_high * n;

            own <= 52'(own_low) + (52'(own_high) << 17);
            wide <= 52'(wide_low) + (52'(wide_high) << 26);

            wide_epsilon <= wide + 52'(epsilon);
            own_later <= own;

            variance <= wide_epsilon - own_later;
        end
    end

    // --- the root, and its reciprocal
    logic [25:0]     root, normal;
    logic [4:0]      leading, leading_later;
    quasar_isqrt #(.W(ROOT)) isqrt (.clk, .enable, .value(variance), .root);
    quasar_normalise #(.W(ROOT)) normalise (.clk, .enable, .value(root), .result(normal), .count(leading));
    quasar_divide #(.W(ROOT), .Q(QUOTIENT)) divide (
        .clk, .enable, .dividend({1'b0, normal_width, 14'b0}), .divisor(normal), .quotient(scale)
    );
    quasar_delay #(.W(5), .CYCLES(QUOTIENT)) delay (.clk, .enable, .in(leading), .out(leading_later));
    assign shift = 6'd27 + {2'b0, width_shift} - {1'b0, leading_later};

    // --- mu = (s1 * c + 2^(r-1)) >> r
    logic signed [17:0] factor_low;
    logic signed [8:0]  factor_high;
    logic signed [43:0] product_low;
    logic signed [34:0] product_high;
    logic signed [50:0] product, rounded;
    logic signed [34:0] coarse;
    logic signed [24:0] fine;
    assign factor_low = {1'b0, mean_factor[16:0]};
    assign factor_high = {1'b0, mean_factor[24:17]};
    always_ff @(posedge clk)
        if (enable) begin
            product_low <= sum * factor_low;
            product_high <= sum * factor_high;
            product <= 51'(product_low) + (51'(product_high) <<< 17);
            rounded <= product + (51'sd1 <<< ({1'b0, mean_shift} + 5'd15));
            coarse <= 35'(rounded >>> (16 + {mean_shift[3:2], 2'b0}));
            fine <= 25'(coarse >>> mean_shift[1:0]);
        end
    quasar_delay #(.W(25), .CYCLES(LATENCY - MEAN)) mean_delay (.clk, .enable, .in(fine), .out(mean));
endmodule
