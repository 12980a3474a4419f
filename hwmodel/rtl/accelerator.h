// quasar_accelerator under a program that gives it whole operations: makes their streams, sends the commands, collects the
// outputs, and counts cycles. Streams never pause.
#pragma once
#include <cmath>
#include <string>

#include "bench.h"

using Bytes = std::vector<uint8_t>;

[[noreturn]] static void give_up(const std::string& message) {
    fprintf(stderr, "error: %s\n", message.c_str());
    exit(2);
}

struct Matrix {
    size_t rows, columns;
    std::vector<int> values;

    Matrix(size_t rows, size_t columns) : rows(rows), columns(columns), values(rows * columns) {}
    int& at(size_t row, size_t column) { return values[row * columns + column]; }
    int at(size_t row, size_t column) const { return values[row * columns + column]; }
};

static size_t tiles(size_t size, size_t unit) { return (size + unit - 1) / unit; }
static size_t whole(size_t size, size_t unit) { return tiles(size, unit) * unit; }

static const uint8_t* part(const Bytes& file, int64_t at, size_t size) {
    if (at < 0 || at + size > file.size()) give_up("a place lies beyond the end of its file");
    return file.data() + at;
}

template <typename T> static T value_at(const Bytes& file, int64_t at) {
    T value;
    memcpy(&value, part(file, at, sizeof value), sizeof value);
    return value;
}

static Bytes section(const Bytes& file, int64_t at, size_t size) {
    const uint8_t* begin = part(file, at, size);
    return Bytes(begin, begin + size);
}

static void put16(Bytes& stream, int value) {
    stream.push_back(value & 255);
    stream.push_back(value >> 8 & 255);
}

static Stream stream_of(const Bytes& bytes, size_t beat) {
    Stream stream;
    stream.data = bytes.data(), stream.beat = beat, stream.beats = bytes.size() / beat;
    return stream;
}

// A product with its weight stream; rows of 4 bits follow those of 8.
struct Product {
    size_t tokens, inputs, rows_high, rows_low;
    bool wide, symmetric, unsigned_codes, token_factors;
    Bytes stream, table;
};

// An operation of the vector unit with its streams.
struct VectorOperation {
    int op;  // 0 residual, 1 softmax, 2 layernorm
    size_t rows, width;
    uint64_t numerator = 0, exponent = 0, epsilon = 0, mean_factor = 0, mean_shift = 0, out_shift = 0;
    Bytes x, y, p, table;
};

// Of the accelerator; beats in bytes.
struct Sizes {
    size_t rows[2];           // in a row tile, of 8 and of 4 bits
    size_t inputs;            // in a k tile
    size_t lanes, vector_lanes;
    size_t beat, activation_beat;
    bool streamed;            // activations come anew for each row tile, else from the buffer
};

#define MEMBER(name) const Port name = PORT(model, name)

class Accelerator {
  public:
    uint64_t cycles = 0;          // of the operations since it was set to 0
    std::vector<double> factors;  // of the rows of the last softmax

    explicit Accelerator(const Sizes& sizes) : size(sizes) {
        for (const Port* port : {&gemm_cmd_valid, &gemm_table_write, &gemm_a_valid, &gemm_w_valid, &gemm_o_ready,
                                 &vector_cmd_valid, &vector_table_write, &vector_x_valid, &vector_y_valid,
                                 &vector_p_valid, &vector_o_ready})
            *port = 0;
        rst = 1;
        step();
        rst = 0;
    }

    // Codes (tokens, rows), rows in the order of the hardware.
    Matrix run(const Product& product, const Matrix& codes) {
        const size_t k_tiles = tiles(product.inputs, size.inputs);
        const size_t rows[] = {product.rows_high, product.rows_low};
        const size_t row_tiles[] = {tiles(rows[0], size.rows[0]), tiles(rows[1], size.rows[1])};
        const Bytes activations = activation_stream(codes, k_tiles, size.streamed ? row_tiles[0] + row_tiles[1] : 1);
        Stream a = stream_of(activations, size.activation_beat), w = stream_of(product.stream, size.beat);
        write_table(gemm_table_write, gemm_table_address, gemm_table_data, product.table);
        gemm_cmd_words = size.streamed ? 0 : product.tokens * k_tiles;
        gemm_cmd_tokens = product.tokens;
        gemm_cmd_k_tiles = k_tiles;
        gemm_cmd_tiles_high = row_tiles[0];
        gemm_cmd_tiles_low = row_tiles[1];
        gemm_cmd_stream = size.streamed;
        gemm_cmd_table = !product.table.empty();
        gemm_cmd_symmetric = product.symmetric;
        gemm_cmd_unsigned = product.unsigned_codes;
        gemm_cmd_wide = product.wide;
        gemm_cmd_token_factor = product.token_factors;
        if (!size.streamed) fill(a);
        gemm_cmd_gemm = 1;
        const auto settle = [&] {
            offer(a, gemm_a_valid, gemm_a_data, 0);
            offer(w, gemm_w_valid, gemm_w_data, 0);
            model.settle();
            advance(a, gemm_a_ready);
            advance(w, gemm_w_ready);
        };
        const Bytes out = outputs(gemm_cmd_valid, gemm_cmd_ready, gemm_o_valid, gemm_o_ready, gemm_o_last, gemm_o_data,
                                  2 * size.lanes, settle);
        gemm_a_valid = 0, gemm_w_valid = 0;
        if (a.taken != a.beats || w.taken != w.beats) give_up("a product has not taken all of its streams");

        Matrix result(product.tokens, rows[0] + rows[1]);
        size_t at = 0, first = 0;
        for (int low = 0; low < 2; first += rows[low++]) {
            const size_t pitch = whole(size.rows[low], size.lanes);
            for (size_t tile = 0; tile < row_tiles[low]; tile++)
                for (size_t token = 0; token < product.tokens; token++, at += 2 * pitch)
                    for (size_t i = 0; i < size.rows[low] && tile * size.rows[low] + i < rows[low]; i++)
                        result.at(token, first + tile * size.rows[low] + i) = value_at<int16_t>(out, at + 2 * i);
        }
        if (at != out.size()) give_up("a product gave another number of outputs");
        return result;
    }

    // Outputs (rows, width).
    Matrix run(const VectorOperation& operation) {
        Stream x = stream_of(operation.x, 2 * size.vector_lanes), y = stream_of(operation.y, 2 * size.vector_lanes);
        Stream p = stream_of(operation.p, size.beat);
        write_table(vector_table_write, vector_table_address, vector_table_data, operation.table);
        vector_cmd_op = operation.op;
        vector_cmd_rows = operation.rows;
        vector_cmd_width = operation.width;
        vector_cmd_numerator = operation.numerator;
        vector_cmd_exponent = operation.exponent;
        vector_cmd_epsilon = operation.epsilon;
        vector_cmd_mean_factor = operation.mean_factor;
        vector_cmd_mean_shift = operation.mean_shift;
        vector_cmd_out_shift = operation.out_shift;
        factors.clear();
        const auto settle = [&] {
            offer(x, vector_x_valid, vector_x_data, 0);
            offer(y, vector_y_valid, vector_y_data, 0);
            offer(p, vector_p_valid, vector_p_data, 0);
            model.settle();
            advance(x, vector_x_ready);
            advance(y, vector_y_ready);
            advance(p, vector_p_ready);
            if (vector_f_valid) factors.push_back(std::ldexp(double(vector_f_mantissa), -int(vector_f_shift)));
        };
        const Bytes out = outputs(vector_cmd_valid, vector_cmd_ready, vector_o_valid, vector_o_ready, vector_o_last,
                                  vector_o_data, 2 * size.vector_lanes, settle);
        vector_x_valid = 0, vector_y_valid = 0, vector_p_valid = 0;
        const size_t pitch = whole(operation.width, size.vector_lanes);
        if (x.taken != x.beats || y.taken != y.beats || p.taken != p.beats || out.size() != 2 * operation.rows * pitch)
            give_up("an operation has not taken or given all of its streams");
        Matrix result(operation.rows, operation.width);
        for (size_t row = 0; row < result.rows; row++)
            for (size_t column = 0; column < result.columns; column++)
                result.at(row, column) = value_at<int16_t>(out, 2 * (row * pitch + column));
        return result;
    }

    // The weight stream of a product of two activations: its rows (rows, inputs) have 8 bits and one factor.
    Bytes weight_stream(const Matrix& rows, int mantissa, int shift) const {
        Bytes stream;
        for (size_t tile = 0; tile < rows.rows; tile += size.rows[0]) {
            for (size_t group = 0; group < size.rows[0]; group += size.lanes, pad(stream, size.beat))
                for (size_t i = group; i < group + size.lanes; i++) {
                    const bool used = i < size.rows[0] && tile + i < rows.rows;
                    stream.resize(stream.size() + 4);  // no bias
                    put16(stream, used ? mantissa : 0);
                    stream.push_back(used ? shift : 0);
                }
            for (size_t k = 0; k < rows.columns; k += size.inputs, pad(stream, size.beat))
                for (size_t input = k; input < k + size.inputs; input++)
                    for (size_t i = tile; i < tile + size.rows[0]; i++)
                        stream.push_back(i < rows.rows && input < rows.columns ? rows.at(i, input) : 0);
        }
        return stream;
    }

    // Numbers of 16 bits, a row in whole beats.
    Bytes vector_stream(const Matrix& rows) const {
        Bytes stream;
        for (size_t row = 0; row < rows.rows; row++, pad(stream, 2 * size.vector_lanes))
            for (size_t column = 0; column < rows.columns; column++) put16(stream, rows.at(row, column));
        return stream;
    }

  private:
    const Sizes size;
    Model model;
    MEMBER(rst);
    MEMBER(gemm_cmd_valid);
    MEMBER(gemm_cmd_ready);
    MEMBER(gemm_cmd_gemm);
    MEMBER(gemm_cmd_words);
    MEMBER(gemm_cmd_tokens);
    MEMBER(gemm_cmd_k_tiles);
    MEMBER(gemm_cmd_tiles_high);
    MEMBER(gemm_cmd_tiles_low);
    MEMBER(gemm_cmd_stream);
    MEMBER(gemm_cmd_table);
    MEMBER(gemm_cmd_symmetric);
    MEMBER(gemm_cmd_unsigned);
    MEMBER(gemm_cmd_wide);
    MEMBER(gemm_cmd_token_factor);
    MEMBER(gemm_table_write);
    MEMBER(gemm_table_address);
    MEMBER(gemm_table_data);
    MEMBER(gemm_a_valid);
    MEMBER(gemm_a_ready);
    MEMBER(gemm_a_data);
    MEMBER(gemm_w_valid);
    MEMBER(gemm_w_ready);
    MEMBER(gemm_w_data);
    MEMBER(gemm_o_valid);
    MEMBER(gemm_o_ready);
    MEMBER(gemm_o_last);
    MEMBER(gemm_o_data);
    MEMBER(vector_cmd_valid);
    MEMBER(vector_cmd_ready);
    MEMBER(vector_cmd_op);
    MEMBER(vector_cmd_rows);
    MEMBER(vector_cmd_width);
    MEMBER(vector_cmd_numerator);
    MEMBER(vector_cmd_exponent);
    MEMBER(vector_cmd_epsilon);
    MEMBER(vector_cmd_mean_factor);
    MEMBER(vector_cmd_mean_shift);
    MEMBER(vector_cmd_out_shift);
    MEMBER(vector_table_write);
    MEMBER(vector_table_address);
    MEMBER(vector_table_data);
    MEMBER(vector_x_valid);
    MEMBER(vector_x_ready);
    MEMBER(vector_x_data);
    MEMBER(vector_y_valid);
    MEMBER(vector_y_ready);
    MEMBER(vector_y_data);
    MEMBER(vector_p_valid);
    MEMBER(vector_p_ready);
    MEMBER(vector_p_data);
    MEMBER(vector_f_valid);
    MEMBER(vector_f_mantissa);
    MEMBER(vector_f_shift);
    MEMBER(vector_o_valid);
    MEMBER(vector_o_ready);
    MEMBER(vector_o_last);
    MEMBER(vector_o_data);

    void step() {
        model.settle();
        model.edge();
    }

    static void pad(Bytes& stream, size_t unit) { stream.resize(whole(stream.size(), unit)); }

    void write_table(const Port& write, const Port& address, const Port& data, const Bytes& table) {
        for (size_t i = 0; i < table.size(); i++) {
            write = 1;
            address = i;
            data = table[i];
            step();
        }
        write = 0;
    }

    // Words of codes of all tokens, k tile by k tile; size.streamed, in whole beats and once for each row tile.
    Bytes activation_stream(const Matrix& codes, size_t k_tiles, size_t times) const {
        Bytes once, stream;
        for (size_t k = 0; k < k_tiles; k++, pad(once, size.activation_beat))
            for (size_t token = 0; token < codes.rows; token++)
                for (size_t i = k * size.inputs; i < (k + 1) * size.inputs; i++)
                    once.push_back(i < codes.columns ? codes.at(token, i) : 0);
        for (size_t i = 0; i < times; i++) stream.insert(stream.end(), once.begin(), once.end());
        return stream;
    }

    // The command that fills the activation buffer.
    void fill(Stream& a) {
        gemm_cmd_gemm = 0;
        gemm_cmd_valid = 1;
        while (a.taken < a.beats) {
            offer(a, gemm_a_valid, gemm_a_data, 0);
            model.settle();
            if (gemm_cmd_valid && !gemm_cmd_ready) give_up("the engine did not take a command");
            advance(a, gemm_a_ready);
            model.edge();
            gemm_cmd_valid = 0;
            gemm_a_valid = 0;
        }
    }

    // Gives the command, and runs until the last output; `settle` offers the streams of a cycle and settles it.
    template <typename Settle>
    Bytes outputs(const Port& cmd_valid, const Port& cmd_ready, const Port& o_valid, const Port& o_ready,
                  const Port& o_last, const Port& o_data, size_t bytes, Settle settle) {
        constexpr uint64_t MOST_SILENT_CYCLES = 10'000'000;
        Bytes out;
        cmd_valid = 1;
        o_ready = 1;
        bool last = false;
        for (uint64_t silent = 0; !last; silent++) {
            settle();
            if (cmd_valid && !cmd_ready) give_up("a unit did not take a command");
            if (o_valid) {
                out.insert(out.end(), o_data.bytes(), o_data.bytes() + bytes);
                last = o_last;
                silent = 0;
            }
            model.edge();
            cycles++;
            cmd_valid = 0;
            if (silent == MOST_SILENT_CYCLES) give_up("an operation does not end");
        }
        o_ready = 0;
        return out;
    }
};
