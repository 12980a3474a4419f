// Runs operations on quasar_vector: bench JOBS RESULTS. Both files are little-endian words as written below.
//
// JOBS      uint32 count; then for each job 19 uint32 (struct Job, in its order), uint64 cycle cap, and the bytes of its
//           x, y and p streams, in whole beats, and its table (256, or none).
// RESULTS   for each job uint32 status (0 done, 1 cycle cap exceeded, 2 stream protocol broken), uint64 cycles, and, if
//           it is done, a pair of uint32 (mantissa, shift) for each factor, and the bytes of the output stream.
//
// Cycles of an operation count from the one that takes the command to the one that hands over the last output, both
// included. With stalls, each stream pauses before a beat with the given probability; a beat once offered stays, and the
// outputs are checked for that, too. A stream that offers nothing shows random data. A command must be taken in the cycle
// in which it is offered, the next one after the last output: so cycles of operations simply add up. Each factor must be
// written once, in the order of the rows, by the time the last output is handed over. All state starts random; jobs
// follow each other without a reset, unless a job asks to be broken off by one first.
#include "bench.h"

struct Job {
    uint32_t op, rows, width, numerator, exponent, epsilon_low, epsilon_high, mean_factor, mean_shift, out_shift;
    uint32_t seed, stall;         // stall probability times 2^16
    uint32_t reset_after;         // break off by a reset after so many cycles, then run again; 0 for never
    uint32_t x_beats, y_beats, p_beats, o_beats, factors, table_bytes;
};

struct Result {
    uint64_t cycles = 0;
    std::vector<uint32_t> factors;
    std::vector<uint8_t> outputs;
};

class Bench {
  public:
    Bench() {
        idle();
        reset();
    }

    // One of the statuses above.
    uint32_t run(const Job& job, uint64_t cap, const Stream* streams, const std::vector<uint8_t>& table,
                 Result& result) {
        random_state = 0x9E3779B97F4A7C15ull ^ job.seed;
        if (job.reset_after) {
            Result ignored;
            attempt(job, job.reset_after, streams, table, ignored);
            idle();
            reset();
        }
        uint32_t status = attempt(job, cap, streams, table, result);
        if (status) {
            idle();
            reset();
        }
        return status;
    }

  private:
    Model model;
    Port rst = PORT(model, rst);
    Port cmd_valid = PORT(model, cmd_valid);
    Port cmd_ready = PORT(model, cmd_ready);
    Port cmd_op = PORT(model, cmd_op);
    Port cmd_rows = PORT(model, cmd_rows);
    Port cmd_width = PORT(model, cmd_width);
    Port cmd_numerator = PORT(model, cmd_numerator);
    Port cmd_exponent = PORT(model, cmd_exponent);
    Port cmd_epsilon = PORT(model, cmd_epsilon);
    Port cmd_mean_factor = PORT(model, cmd_mean_factor);
    Port cmd_mean_shift = PORT(model, cmd_mean_shift);
    Port cmd_out_shift = PORT(model, cmd_out_shift);
    Port table_write = PORT(model, table_write);
    Port table_address = PORT(model, table_address);
    Port table_data = PORT(model, table_data);
    Port x_valid = PORT(model, x_valid);
    Port x_ready = PORT(model, x_ready);
    Port x_data = PORT(model, x_data);
    Port y_valid = PORT(model, y_valid);
    Port y_ready = PORT(model, y_ready);
    Port y_data = PORT(model, y_data);
    Port p_valid = PORT(model, p_valid);
    Port p_ready = PORT(model, p_ready);
    Port p_data = PORT(model, p_data);
    Port f_valid = PORT(model, f_valid);
    Port f_row = PORT(model, f_row);
    Port f_mantissa = PORT(model, f_mantissa);
    Port f_shift = PORT(model, f_shift);
    Port o_valid = PORT(model, o_valid);
    Port o_ready = PORT(model, o_ready);
    Port o_last = PORT(model, o_last);
    Port o_data = PORT(model, o_data);

    void idle() {
        for (const Port* port : {&cmd_valid, &table_write, &x_valid, &y_valid, &p_valid, &o_ready}) *port = 0;
    }

    void reset() {
        rst = 1;
        model.settle();
        model.edge();
        rst = 0;
    }

    // As `offer`, and what is shown when nothing is offered is random.
    static void offer_or_noise(Stream& s, const Port& valid, const Port& data, uint32_t stall) {
        offer(s, valid, data, stall);
        if (s.offered) return;
        std::vector<uint8_t> bytes(s.beat);
        for (uint8_t& byte : bytes) byte = random16();
        data.load(bytes.data(), s.beat);
    }

    uint32_t attempt(const Job& job, uint64_t cap, const Stream* streams, const std::vector<uint8_t>& table,
                     Result& result) {
        Stream x = streams[0], y = streams[1], p = streams[2];
        for (size_t i = 0; i < table.size(); i++) {
            table_write = 1;
            table_address = i;
            table_data = table[i];
            model.settle();
            model.edge();
        }
        table_write = 0;

        bool waiting = false;
        uint8_t waiting_bytes[X_BYTES];
        uint32_t outputs = 0;
        for (uint64_t spent = 0; spent < cap; spent++) {
            bool commanding = spent == 0;
            cmd_valid = commanding;
            // but for the cycle of the command its fields show something else
            cmd_op = commanding ? job.op : random16() % 4;
            cmd_rows = commanding ? job.rows : random16();
            cmd_width = commanding ? job.width : random16();
            cmd_numerator = commanding ? job.numerator : random16();
            cmd_exponent = commanding ? job.exponent : random16() % 128;
            cmd_epsilon = commanding ? job.epsilon_low | uint64_t(job.epsilon_high) << 32 : random16();
            cmd_mean_factor = commanding ? job.mean_factor : random16();
            cmd_mean_shift = commanding ? job.mean_shift : random16() % 32;
            cmd_out_shift = commanding ? job.out_shift : random16() % 32;
            offer_or_noise(x, x_valid, x_data, job.stall);
            offer_or_noise(y, y_valid, y_data, job.stall);
            offer_or_noise(p, p_valid, p_data, job.stall);
            o_ready = !job.stall || random16() >= job.stall;
            model.settle();

            if (commanding && !cmd_ready) return 2;
            advance(x, x_ready);
            advance(y, y_ready);
            advance(p, p_ready);
            if (f_valid) {
                if (f_row != result.factors.size() / 2) return 2;
                result.factors.push_back(f_mantissa);
                result.factors.push_back(f_shift);
            }
            bool last = false;
            const uint8_t* bytes = o_data.bytes();
            if (waiting && (!o_valid || memcmp(bytes, waiting_bytes, X_BYTES))) return 2;
            waiting = o_valid && !o_ready;
            if (waiting) memcpy(waiting_bytes, bytes, X_BYTES);
            if (o_valid && o_ready) {
                result.outputs.insert(result.outputs.end(), bytes, bytes + X_BYTES);
                last = o_last;
                if (++outputs > job.o_beats || last != (outputs == job.o_beats)) return 2;
            }
            model.edge();
            if (last) {
                result.cycles = spent + 1;
                idle();
                bool all_taken = x.taken == x.beats && y.taken == y.beats && p.taken == p.beats;
                return all_taken && result.factors.size() == 2 * size_t(job.factors) ? 0 : 2;
            }
        }
        return 1;
    }
};

static void run_job(Bench& bench, const Job& job, uint64_t cap, FILE* jobs, FILE* results) {
    std::vector<uint8_t> x(size_t(job.x_beats) * X_BYTES), y(size_t(job.y_beats) * X_BYTES);
    std::vector<uint8_t> p(size_t(job.p_beats) * P_BYTES), table(job.table_bytes);
    read_all(jobs, x.data(), x.size());
    read_all(jobs, y.data(), y.size());
    read_all(jobs, p.data(), p.size());
    read_all(jobs, table.data(), table.size());
    Stream streams[3];
    streams[0].data = x.data(), streams[0].beat = X_BYTES, streams[0].beats = job.x_beats;
    streams[1].data = y.data(), streams[1].beat = X_BYTES, streams[1].beats = job.y_beats;
    streams[2].data = p.data(), streams[2].beat = P_BYTES, streams[2].beats = job.p_beats;
    Result result;
    uint32_t status = bench.run(job, cap, streams, table, result);
    fwrite(&status, sizeof status, 1, results);
    fwrite(&result.cycles, sizeof result.cycles, 1, results);
    if (status == 0) {
        fwrite(result.factors.data(), sizeof(uint32_t), result.factors.size(), results);
        fwrite(result.outputs.data(), 1, result.outputs.size(), results);
    }
}

int main(int argc, char** argv) { return run_all<Job, Bench>(argc, argv, run_job); }
