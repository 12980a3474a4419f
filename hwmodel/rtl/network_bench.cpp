// Runs a network on quasar_accelerator for one image: network_bench NETWORK FOLDER, see the Makefile beside it.
//
// This program plays the sequencer that the RTL does not have: it gives the commands, makes the streams, and moves the
// codes of each output to the operations that take them, as a driver or a sequencer in hardware has to. Every output is
// compared with the golden tensors of the bundle, and what follows goes on with the outputs of the RTL.
//
// NETWORK   text, lines of a name and pairs of a key and a number: `engine` (sizes of the accelerator), `network` (sizes
//           of the network), and one for each layer. Of these, `image`, `logits`, `golden` and `factors` are places in the
//           file vectors.npz of FOLDER; other places are those of streams and tables in its weights.bin, in bytes.
//           docs/bundle.md has all keys.
//
// It prints a line for each layer: cycles, cycles by the cost model, outputs, wrong outputs; then their sums. Cycles of
// an operation count from the one that takes its command to the one that hands over its last output, both included; those
// of a layer are the sum over its heads. Exit status: 0 if all is right, 1 if not, 2 if the simulation broke off.
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "accelerator.h"

// A line of NETWORK.
struct Record {
    std::string name;
    std::map<std::string, int64_t> numbers;

    bool has(const char* key) const { return numbers.count(key); }
    int64_t operator[](const char* key) const {
        auto found = numbers.find(key);
        if (found == numbers.end()) give_up(name + " has no " + key);
        return found->second;
    }
};

// By their names: of the engine, of the network, and of the layers.
using Records = std::map<std::string, Record>;

static Records read_records(const std::string& path) {
    std::ifstream file(path);
    if (!file) give_up(path + " cannot be read");
    Records records;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string key;
        Record record;
        if (!(words >> record.name) || record.name[0] == '#') continue;
        for (int64_t number; words >> key >> number;) record.numbers[key] = number;
        records[record.name] = record;
    }
    return records;
}

class Network {
  public:
    Network(const Records& records, const std::string& folder)
        : weights(read(folder + "/weights.bin")),
          vectors(read(folder + "/vectors.npz")),
          records(records),
          network(find("network")),
          accelerator(sizes_of(find("engine"))) {}

    // Runs all layers for the first golden image; whether everything was right.
    bool run() {
        const size_t tokens = network["tokens"], width = network["width"];
        printf("%-22s %10s %10s %10s %7s\n", "layer", "cycles", "model", "outputs", "wrong");
        const Matrix embedded = linear("patch_embed", patches());
        Matrix stream(tokens, width), position(tokens, width);
        for (size_t i = 0; i < embedded.values.size(); i++) stream.values[width + i] = embedded.values[i];
        for (size_t i = 0; i < position.values.size(); i++)
            position.values[i] = value_at<int16_t>(weights, find("pos_embed")["position"] + 2 * i);
        stream = residual("pos_embed", stream, position);
        for (int64_t i = 0; i < network["depth"]; i++) {
            const std::string block = "blocks." + std::to_string(i) + ".";
            const Matrix qkv = linear(block + "qkv", norm(block + "norm1", stream));
            const Matrix mixed = records.count(block + "context") ? linear_angular(block, qkv) : attention(block, qkv);
            stream = residual(block + "residual1", stream, linear(block + "proj", mixed));
            const Matrix hidden = linear(block + "fc1", norm(block + "norm2", stream));
            stream = residual(block + "residual2", stream, linear(block + "fc2", hidden));
        }
        Matrix class_token(1, width);
        for (size_t i = 0; i < width; i++) class_token.values[i] = stream.values[i];
        const Matrix logits = linear("head", norm("norm", class_token));
        for (size_t i = 0; i < logits.columns; i++)
            wrong += logits.values[i] != value_at<int16_t>(vectors, network["logits"] + 2 * i);
        print("all", cycles, network["cycles"], outputs, wrong);
        return !wrong && !late;
    }

  private:
    const Bytes weights, vectors;
    const Records records;
    const Record& network;
    Accelerator accelerator;
    uint64_t cycles = 0, outputs = 0, wrong = 0, late = 0;

    static Bytes read(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        if (!file) give_up(path + " cannot be read");
        return Bytes(std::istreambuf_iterator<char>(file), {});
    }

    const Record& find(const std::string& name) const {
        auto found = records.find(name);
        if (found == records.end()) give_up("there is no line for " + name);
        return found->second;
    }

    static Sizes sizes_of(const Record& engine) {
        Sizes sizes;
        sizes.rows[0] = engine["tile_rows_high"], sizes.rows[1] = engine["tile_rows_low"];
        sizes.inputs = engine["tile_inputs"];
        sizes.lanes = engine["lanes"], sizes.vector_lanes = engine["vector_lanes"];
        sizes.beat = engine["beat_bytes"], sizes.activation_beat = engine["activation_beat_bytes"];
        sizes.streamed = engine["streamed"];
        return sizes;
    }

    static void print(const std::string& name, uint64_t cycles, uint64_t model, uint64_t outputs, uint64_t wrong) {
        printf("%-22s %10llu %10llu %10llu %7llu\n", name.c_str(), (unsigned long long)cycles,
               (unsigned long long)model, (unsigned long long)outputs, (unsigned long long)wrong);
    }

    // Compares the outputs of a layer, of all its heads, with the golden ones, and prints its line.
    void check(const std::string& name, const std::vector<Matrix>& found, const std::vector<double>& factors = {}) {
        const Record& own = find(name);
        const int64_t size = own["golden_bytes"];
        uint64_t compared = 0, differing = 0;
        for (const Matrix& matrix : found)
            for (int value : matrix.values) {
                const int64_t at = own["golden"] + size * compared++;
                const int signed8 = value_at<int8_t>(vectors, at);
                const int golden = size == 2 ? value_at<int16_t>(vectors, at) : own.has("factors") ? signed8 & 255 : signed8;
                differing += value != golden;
            }
        for (size_t i = 0; i < factors.size(); i++, compared++)
            differing += factors[i] != value_at<double>(vectors, own["factors"] + 8 * i);
        const uint64_t spent = accelerator.cycles;
        accelerator.cycles = 0;
        print(name, spent, own["cycles"], compared, differing);
        cycles += spent, outputs += compared, wrong += differing, late += spent != uint64_t(own["cycles"]);
    }

    // Patches of the image (patches, channels * size * size).
    Matrix patches() const {
        const size_t size = network["patch_size"], channels = network["channels"], pixels = network["image_size"];
        const size_t grid = pixels / size;
        Matrix result(grid * grid, channels * size * size);
        for (size_t row = 0; row < result.rows; row++)
            for (size_t i = 0; i < result.columns; i++) {
                const size_t y = row / grid * size + i / size % size, x = row % grid * size + i % size;
                const size_t channel = i / (size * size);
                result.at(row, i) = value_at<int8_t>(vectors, network["image"] + (channel * pixels + y) * pixels + x);
            }
        return result;
    }

    // A product with stored rows; its result has the order of the channels.
    Matrix linear(const std::string& name, const Matrix& codes) {
        const Record& own = find(name);
        const bool wide = own["wide"], has_table = own.has("table");
        Product product{codes.rows, codes.columns, size_t(own["rows_high"]), size_t(own["rows_low"]), wide,
                        !wide && !has_table, false, false, section(weights, own["rows"], own["rows_bytes"]), {}};
        if (has_table) product.table = section(weights, own["table"], 256);
        const Matrix rows = accelerator.run(product, codes);
        check(name, {rows});
        Matrix result(rows.rows, rows.columns);
        for (size_t i = 0; i < rows.columns; i++) {
            const size_t channel = value_at<uint16_t>(weights, own["channels"] + 2 * i);
            for (size_t token = 0; token < rows.rows; token++) result.at(token, channel) = rows.at(token, i);
        }
        return result;
    }

    Matrix norm(const std::string& name, const Matrix& stream) {
        const Record& own = find(name);
        VectorOperation operation{2, stream.rows, stream.columns};
        operation.epsilon = own["epsilon"];
        operation.mean_factor = own["mean_factor"];
        operation.mean_shift = own["mean_shift"];
        operation.out_shift = own["out_shift"];
        operation.x = accelerator.vector_stream(stream);
        operation.p = section(weights, own["parameters"], own["parameters_bytes"]);
        const Matrix result = accelerator.run(operation);
        check(name, {result});
        return result;
    }

    Matrix residual(const std::string& name, const Matrix& left, const Matrix& right) {
        VectorOperation operation{0, left.rows, left.columns};
        operation.x = accelerator.vector_stream(left);
        operation.y = accelerator.vector_stream(right);
        const Matrix result = accelerator.run(operation);
        check(name, {result});
        return result;
    }

    // Queries (0), keys (1) or values (2) of a head (tokens, head_dim), of the channels of qkv: each head has all three.
    Matrix part_of(const Matrix& qkv, size_t head, size_t part) const {
        const size_t size = network["head_dim"];
        Matrix result(qkv.rows, size);
        for (size_t token = 0; token < qkv.rows; token++)
            for (size_t i = 0; i < size; i++) result.at(token, i) = qkv.at(token, (3 * head + part) * size + i);
        return result;
    }

    static Matrix transposed(const Matrix& matrix) {
        Matrix result(matrix.columns, matrix.rows);
        for (size_t row = 0; row < matrix.rows; row++)
            for (size_t column = 0; column < matrix.columns; column++) result.at(column, row) = matrix.at(row, column);
        return result;
    }

    // The channels of all heads beside each other, of their values (tokens, head_dim).
    static Matrix joined(const std::vector<Matrix>& values) {
        const size_t tokens = values[0].rows, size = values[0].columns;
        Matrix result(tokens, values.size() * size);
        for (size_t head = 0; head < values.size(); head++)
            for (size_t token = 0; token < tokens; token++)
                for (size_t i = 0; i < size; i++) result.at(token, head * size + i) = values[head].at(token, i);
        return result;
    }

    // Mixed values (tokens, heads * head_dim) of the channels of qkv.
    Matrix attention(const std::string& block, const Matrix& qkv) {
        const size_t size = network["head_dim"], heads = qkv.columns / (3 * size), tokens = qkv.rows;
        const Record &scores_of = find(block + "scores"), &softmax_of = find(block + "softmax");
        const Bytes exponentials = section(weights, softmax_of["exponentials"], 256);
        uint64_t spent[3] = {};
        std::vector<Matrix> scores, numerators, values;
        std::vector<double> factors;
        for (size_t head = 0; head < heads; head++) {
            const Matrix q = part_of(qkv, head, 0), k = part_of(qkv, head, 1), v = transposed(part_of(qkv, head, 2));
            Product product{tokens, size, tokens, 0, false, true, false, false, {}, {}};
            product.stream = accelerator.weight_stream(k, scores_of["mantissa"], scores_of["shift"]);
            scores.push_back(accelerator.run(product, q));
            VectorOperation softmax{1, tokens, tokens};
            softmax.numerator = softmax_of["numerator"];
            softmax.exponent = softmax_of["exponent"];
            softmax.x = accelerator.vector_stream(scores.back());
            softmax.table = exponentials;
            spent[0] += take_cycles();
            numerators.push_back(accelerator.run(softmax));
            factors.insert(factors.end(), accelerator.factors.begin(), accelerator.factors.end());
            spent[1] += take_cycles();
            // The factors of the tokens have gone from the vector unit into the engine; those of the rows do not count.
            Product mix{tokens, tokens, size, 0, false, true, true, true, {}, {}};
            mix.stream = accelerator.weight_stream(v, 1 << 15, 1);
            values.push_back(accelerator.run(mix, numerators.back()));
            spent[2] += take_cycles();
        }
        accelerator.cycles = spent[0];
        check(block + "scores", scores);
        accelerator.cycles = spent[1];
        check(block + "softmax", numerators, factors);
        accelerator.cycles = spent[2];
        check(block + "mix", values);
        return joined(values);
    }

    // Queries (0) or keys (1) of all heads, one head under the other, as the LayerNorm unit gives them: their codes are
    // the upper bytes of its elements.
    Matrix units_of(const std::string& name, const Matrix& qkv, size_t part) {
        const size_t size = network["head_dim"], heads = qkv.columns / (3 * size);
        Matrix elements(heads * qkv.rows, size);
        for (size_t row = 0; row < elements.rows; row++)
            for (size_t i = 0; i < size; i++)
                elements.at(row, i) = 256 * qkv.at(row % qkv.rows, (3 * (row / qkv.rows) + part) * size + i);
        return norm(name, elements);
    }

    // As attention, with the context of a head (head_dim, head_dim) in place of scores and softmax: a row of it for each
    // channel of the values.
    Matrix linear_angular(const std::string& block, const Matrix& qkv) {
        const size_t size = network["head_dim"], heads = qkv.columns / (3 * size), tokens = qkv.rows;
        const Record &context_of = find(block + "context"), &readout_of = find(block + "readout");
        const Matrix queries = units_of(block + "q_unit", qkv, 0), keys = units_of(block + "k_unit", qkv, 1);
        uint64_t spent[2] = {};
        std::vector<Matrix> contexts, values;
        for (size_t head = 0; head < heads; head++) {
            Matrix q(tokens, size), k(size, tokens);
            for (size_t token = 0; token < tokens; token++)
                for (size_t i = 0; i < size; i++) {
                    q.at(token, i) = queries.at(head * tokens + token, i);
                    k.at(i, token) = keys.at(head * tokens + token, i);
                }
            Product context{size, tokens, size, 0, false, true, false, false, {}, {}};
            context.stream = accelerator.weight_stream(k, context_of["mantissa"], context_of["shift"]);
            contexts.push_back(accelerator.run(context, transposed(part_of(qkv, head, 2))));
            spent[0] += take_cycles();
            Product readout{tokens, size, size, 0, false, true, false, false, {}, {}};
            readout.stream = accelerator.weight_stream(contexts.back(), readout_of["mantissa"], readout_of["shift"]);
            values.push_back(accelerator.run(readout, q));
            spent[1] += take_cycles();
        }
        accelerator.cycles = spent[0];
        check(block + "context", contexts);
        accelerator.cycles = spent[1];
        check(block + "readout", values);
        return joined(values);
    }

    uint64_t take_cycles() {
        const uint64_t spent = accelerator.cycles;
        accelerator.cycles = 0;
        return spent;
    }
};

int main(int argc, char** argv) {
    if (argc != 3) give_up("usage: network_bench NETWORK FOLDER");
    return Network(read_records(argv[1]), argv[2]).run() ? 0 : 1;
}
