// A tiled matrix product with rows of two precisions: C[f, m] = requant(sum_k A[f, k] * W[m, k] + b[m]).
//
// Commands, one at a time: fill the activation buffer (`cmd_gemm` low, `cmd_words` words), or a product. A product runs
// its row tiles of 8 bits, then those of 4 bits, over all its k tiles; each (row tile, k tile) loads its weights into
// shadow registers while the tile before computes. Activations come from the buffer, filled before, or, with
// `cmd_stream`, from the stream again for each tile: then the buffer's halves take turns.
//
// Modes of a product, none of which changes its cycles:
//   * `cmd_unsigned`: activations are 0 to 255 (numerators of softmax); all its rows must be of 8 bits;
//   * `cmd_wide`: outputs of 16 bits and no table (residual stream, logits); otherwise they are of 8, sign-extended;
//   * `cmd_token_factor`: mantissa and shift of the requantization are those of the token, written beforehand through
//     `factor_*`, and not those of the row (products with the numerators, whose sum is the token's).
//
// Rules of the schedule (hwmodel/cycles.py derives the cycles from them):
//   * a tile starts when its weights (and streamed activations) are complete and the tile before has issued all its
//     tokens, at least 2 cycles after its start; the loads of the tile after it start in the same cycle;
//   * the last k tile of a row tile also waits until the drain has read all sums of the row tile before;
//   * the drain of a row tile begins when the first token of its last k tile has passed the array.
module quasar_gemm #(
    parameter int P_M = 8,
    parameter int P_K = 8,
    parameter int BACKEND = 0,         // 0 dual, 1 atomic
    parameter int PW = 64,             // stream widths in bits, whole bytes
    parameter int PA = 64,             // see quasar_activations
    parameter int PO = 64,             // outputs: 8 bits for each lane of the drain
    parameter int MAX_TOKENS = 256,    // depth of the accumulators
    parameter int ACT_WORDS = 1024     // depth of the activation buffer in words of P_K codes
) (
    input  logic          clk,
    input  logic          rst,

    input  logic          cmd_valid,
    output logic          cmd_ready,
    input  logic          cmd_gemm,
    input  logic [$clog2(ACT_WORDS):0] cmd_words,
    input  logic [15:0]   cmd_tokens,
    input  logic [15:0]   cmd_k_tiles,
    input  logic [15:0]   cmd_tiles_high,
    input  logic [15:0]   cmd_tiles_low,
    input  logic          cmd_stream,
    input  logic          cmd_table,
    input  logic          cmd_symmetric,
    input  logic          cmd_unsigned,
    input  logic          cmd_wide,
    input  logic          cmd_token_factor,

    input  logic          table_write,
    input  logic [7:0]    table_address,
    input  logic [7:0]    table_data,

    input  logic          factor_write,
    input  logic [(MAX_TOKENS > 1 ? $clog2(MAX_TOKENS) : 1)-1:0] factor_address,
    input  logic [15:0]   factor_mantissa,
    input  logic [5:0]    factor_shift,

    input  logic          a_valid,
    output logic          a_ready,
    input  logic [PA-1:0] a_data,

    input  logic          w_valid,
    output logic          w_ready,
    input  logic [PW-1:0] w_data,

    output logic          o_valid,
    input  logic          o_ready,
    output logic          o_last,
    output logic [2*PO-1:0] o_data     // PO / 8 lanes of 16 bits
);
    localparam int ROWS_HIGH = (BACKEND == 0 ? 2 : 1) * P_M;
    localparam int ROWS_LOW = (BACKEND == 0 ? 3 : 2) * P_M;
    localparam int ROWS = ROWS_LOW;
    localparam int LANES = PO / 8;
    localparam int BEATS_HIGH = (8 * ROWS_HIGH * P_K + PW - 1) / PW;
    localparam int BEATS_LOW = (4 * ROWS_LOW * P_K + PW - 1) / PW;
    localparam int GROUPS_HIGH = (ROWS_HIGH + LANES - 1) / LANES;
    localparam int GROUPS_LOW = (ROWS_LOW + LANES - 1) / LANES;
    localparam int GROUP_W = GROUPS_LOW > 1 ? $clog2(GROUPS_LOW) : 1;
    localparam int PARAM_BEATS = (56 * LANES + PW - 1) / PW;
    localparam int MOST_BEATS = BEATS_HIGH > PARAM_BEATS ? BEATS_HIGH : PARAM_BEATS;
    localparam int INDEX_W = $clog2(MOST_BEATS + 1);
    localparam int TOKEN_W = MAX_TOKENS > 1 ? $clog2(MAX_TOKENS) : 1;
    localparam int ADDRESS_W = $clog2(ACT_WORDS);
    localparam int ARRAY_LATENCY = BACKEND == 0 ? 3 + $clog2(P_K) : 3 + P_K;

    // --- command
    logic        running, filling, streaming, use_table, symmetric, act_unsigned, wide, token_factor;
    logic [ADDRESS_W:0] words;
    logic [15:0] tokens, k_tiles, row_tiles;
    assign cmd_ready = !running && !filling;
    wire begin_gemm = cmd_valid && cmd_ready && cmd_gemm;
    wire begin_fill = cmd_valid && cmd_ready && !cmd_gemm;

    // --- weights
    logic               beat_valid, full, tile_high, tile_first, tile_last, tile_slot, tile_final;
    logic [INDEX_W-1:0] beat_index;
    logic [PW-1:0]      beat_data;
    logic               start, enable, param_slot;
    logic [GROUP_W-1:0] param_group;
    logic [56*LANES-1:0] params;
    quasar_weights #(
        .PW(PW), .BEATS_HIGH(BEATS_HIGH), .BEATS_LOW(BEATS_LOW), .GROUPS_HIGH(GROUPS_HIGH), .GROUPS_LOW(GROUPS_LOW),
        .GROUP_BITS(56 * LANES), .GROUP_W(GROUP_W), .INDEX_W(INDEX_W)
    ) weights (
        .clk, .rst, .begin_gemm, .k_tiles,
        .tiles_high(cmd_tiles_high), .tiles_low(cmd_tiles_low),
        .w_valid, .w_ready, .w_data, .beat_valid, .beat_index, .beat_data,
        .start, .full, .tile_high, .tile_first, .tile_last, .tile_slot, .tile_final,
        .param_enable(enable), .param_slot, .param_group, .params
    );

    // --- activations: which half is being filled, and how many tiles are still to come
    logic                 filled, tile_filled, fill_upper, fill_more;
    logic [15:0]          fill_k, fill_rows;
    logic [ADDRESS_W-1:0] read_address, next_address;
    logic [8*P_K-1:0]     act;
    wire fill_tile = fill_more && (!tile_filled || start);
    quasar_activations #(.P_K(P_K), .PA(PA), .WORDS(ACT_WORDS), .ADDRESS_W(ADDRESS_W)) activations (
        .clk, .rst, .fill_upper, .fill_words(filling ? words : (ADDRESS_W + 1)'(tokens)),
        .fill_enable(filling || fill_tile), .filled, .a_valid, .a_ready, .a_data, .read_address, .act
    );

    // --- issue of tokens
    logic        gap, read_upper, finished_busy;
    logic [15:0] token;
    assign start = running && full && (!streaming || tile_filled) && token == '0 && !gap
                && !(tile_last && finished_busy);
    wire issue = start || token != '0;
    wire last_token = token == tokens - 1'b1;
    always_comb begin
        read_address = next_address;
        if (start && streaming) read_address = read_upper ? ADDRESS_W'(ACT_WORDS / 2) : '0;
        else if (start && tile_first) read_address = '0;
    end

    logic drain_high, drain_slot, drain_final, released, done;
    always_ff @(posedge clk) begin
        if (rst) begin
            running <= 1'b0;
            filling <= 1'b0;
            fill_more <= 1'b0;
            tile_filled <= 1'b0;
            token <= '0;
            gap <= 1'b0;
            finished_busy <= 1'b0;
            fill_upper <= 1'b0;
        end else begin
            if (begin_gemm) running <= 1'b1;
            else if (done) running <= 1'b0;
            if (begin_fill) filling <= 1'b1;
            else if (filled) filling <= 1'b0;

            if (begin_gemm) fill_more <= cmd_stream;
            else if (filled && fill_k == k_tiles - 1'b1 && fill_rows == row_tiles - 1'b1) fill_more <= 1'b0;
            if (filled && !filling) tile_filled <= 1'b1;
            else if (start) tile_filled <= 1'b0;
            if (begin_gemm || begin_fill) fill_upper <= 1'b0;
            else if (filled) fill_upper <= !fill_upper;

            if (issue) token <= last_token ? '0 : token + 1'b1;
            gap <= start && last_token;
            if (start && tile_last) finished_busy <= 1'b1;
            else if (released) finished_busy <= 1'b0;
        end

        if (begin_fill) words <= cmd_words;
        if (begin_gemm) begin
            tokens <= cmd_tokens;
            k_tiles <= cmd_k_tiles;
            row_tiles <= cmd_tiles_high + cmd_tiles_low;
            streaming <= cmd_stream;
            use_table <= cmd_table;
            symmetric <= cmd_symmetric;
            act_unsigned <= cmd_unsigned;
            wide <= cmd_wide;
            token_factor <= cmd_token_factor;
            fill_k <= '0;
            fill_rows <= '0;
            read_upper <= 1'b0;
        end else begin
            if (filled) begin
                fill_k <= fill_k == k_tiles - 1'b1 ? '0 : fill_k + 1'b1;
                if (fill_k == k_tiles - 1'b1) fill_rows <= fill_rows + 1'b1;
            end
            if (start) read_upper <= !read_upper;
        end
        if (issue) next_address <= read_address + 1'b1;
        if (start && tile_last) begin
            drain_high <= tile_high;
            drain_slot <= tile_slot;
            drain_final <= tile_final;
        end
    end

    // --- array; index 0 of the pipeline is the cycle in which `act` is there
    logic               swap, swap_high, first, last;
    logic [ARRAY_LATENCY:0]           valids;
    logic [ARRAY_LATENCY-1:0]         firsts, lasts;      // from the cycle after
    logic [(ARRAY_LATENCY+1)*16-1:0]  indices;
    logic [ROWS*32-1:0]               sums;
    always_ff @(posedge clk) begin
        swap <= start && !rst;
        if (start) begin
            swap_high <= tile_high;
            first <= tile_first;
            last <= tile_last;
        end
        valids <= rst ? '0 : {valids[ARRAY_LATENCY-1:0], issue};
        indices <= {indices[ARRAY_LATENCY*16-1:0], token};
        firsts <= {firsts[ARRAY_LATENCY-2:0], first};
        lasts <= {lasts[ARRAY_LATENCY-2:0], last};
    end
    if (BACKEND == 0) begin : g_dual
        quasar_array_dual #(.P_M(P_M), .P_K(P_K), .PW(PW), .INDEX_W(INDEX_W), .SUM_W(32)) array (
            .clk, .beat_valid, .beat_index, .beat_data, .swap, .swap_high, .act, .act_high(swap_high), .act_unsigned,
            .sums
        );
    end else begin : g_atomic
        quasar_array_atomic #(.P_M(P_M), .P_K(P_K), .PW(PW), .INDEX_W(INDEX_W), .SUM_W(32)) array (
            .clk, .beat_valid, .beat_index, .beat_data, .swap, .swap_high, .act, .act_high(swap_high), .act_unsigned,
            .sums
        );
    end

    // --- accumulators and drain
    wire               sum_valid = valids[ARRAY_LATENCY];
    wire [15:0]        sum_index = indices[ARRAY_LATENCY*16+:16];
    wire [TOKEN_W-1:0] ahead_index = indices[(ARRAY_LATENCY-1)*16+:TOKEN_W];
    wire               begin_drain = sum_valid && lasts[ARRAY_LATENCY-1] && sum_index == '0;
    logic [ROWS*32-1:0] drain_sums;
    logic [TOKEN_W-1:0] drain_token;
    for (genvar r = 0; r < ROWS; r++) begin : g_accumulator
        quasar_accumulator #(.DEPTH(MAX_TOKENS), .TOKEN_W(TOKEN_W)) accumulator (
            .clk, .read_token(ahead_index), .valid(sum_valid), .token(sum_index[TOKEN_W-1:0]),
            .first(firsts[ARRAY_LATENCY-1]), .last(lasts[ARRAY_LATENCY-1]), .sum(sums[32*r+:32]),
            .drain_enable(enable), .drain_token, .drain_sum(drain_sums[32*r+:32])
        );
    end
    quasar_drain #(
        .LANES(LANES), .ROWS(ROWS), .GROUPS_HIGH(GROUPS_HIGH), .GROUPS_LOW(GROUPS_LOW), .GROUP_W(GROUP_W),
        .MAX_TOKENS(MAX_TOKENS), .TOKEN_W(TOKEN_W)
    ) drain (
        .clk, .rst, .begin_drain, .tokens, .high(drain_high), .slot(drain_slot), .final_tile(drain_final), .released,
        .use_table, .wide, .symmetric, .token_factor, .table_write, .table_address, .table_data,
        .factor_write, .factor_address, .factor_mantissa, .factor_shift,
        .enable, .drain_token, .drain_sums, .param_slot, .param_group, .params,
        .o_valid, .o_ready, .o_last, .o_data
    );
    assign done = o_valid && o_ready && o_last;
endmodule
