// Runs products on quasar_gemm: bench JOBS RESULTS. Both files are little-endian words as written below.
//
// JOBS      uint32 count; then for each job 19 uint32 (struct Job, in its order), uint64 cycle cap, and the bytes of its
//           activations and its weight stream, in whole beats, of its table (256, or none) and of the factors of its
//           tokens (uint32 each, mantissa + 2^16 * shift; or none).
// RESULTS   for each job uint32 status (0 done, 1 cycle cap exceeded, 2 stream protocol broken), uint64 cycles,
//           uint64 cycles of the fill, and, if it is done, the bytes of the output stream.
//
// Cycles of a product count from the one that takes the command to the one that hands over the last output, both
// included. With stalls, each stream pauses before a beat with the given probability; a beat once offered stays, and the
// outputs are checked for that, too. A command must be taken in the cycle in which it is offered, the next one after the
// last output: so cycles of products simply add up. Jobs follow each other without a reset, unless a job asks to be
// broken off by one first.
#include "bench.h"

struct Job {
    uint32_t words, tokens, k_tiles, tiles_high, tiles_low;
    uint32_t stream, use_table, symmetric, unsigned_acts, wide, token_factor;
    uint32_t seed, stall;         // stall probability times 2^16
    uint32_t reset_after;         // break off by a reset after so many cycles, then run again; 0 for never
    uint32_t a_beats, w_beats, o_beats, table_bytes, factors;
};

// What is written before the command.
struct Memories {
    std::vector<uint8_t> table;
    std::vector<uint32_t> factors;
};

class Bench {
  public:
    Bench() {
        idle();
        reset();
    }

    // One of the statuses above; appends the outputs.
    uint32_t run(const Job& job, uint64_t cap, Stream a, Stream w, const Memories& memories,
                 std::vector<uint8_t>& out, uint64_t& cycles, uint64_t& fill_cycles) {
        random_state = 0x9E3779B97F4A7C15ull ^ job.seed;
        if (job.reset_after) {
            std::vector<uint8_t> ignored;
            uint64_t budget = job.reset_after;
            attempt(job, budget, a, w, memories, ignored, cycles, fill_cycles);
            idle();
            reset();
        }
        uint32_t status = attempt(job, cap, a, w, memories, out, cycles, fill_cycles);
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
    Port cmd_gemm = PORT(model, cmd_gemm);
    Port cmd_words = PORT(model, cmd_words);
    Port cmd_tokens = PORT(model, cmd_tokens);
    Port cmd_k_tiles = PORT(model, cmd_k_tiles);
    Port cmd_tiles_high = PORT(model, cmd_tiles_high);
    Port cmd_tiles_low = PORT(model, cmd_tiles_low);
    Port cmd_stream = PORT(model, cmd_stream);
    Port cmd_table = PORT(model, cmd_table);
    Port cmd_symmetric = PORT(model, cmd_symmetric);
    Port table_write = PORT(model, table_write);
    Port table_address = PORT(model, table_address);
    Port table_data = PORT(model, table_data);
    Port cmd_unsigned = PORT(model, cmd_unsigned);
    Port cmd_wide = PORT(model, cmd_wide);
    Port cmd_token_factor = PORT(model, cmd_token_factor);
    Port factor_write = PORT(model, factor_write);
    Port factor_address = PORT(model, factor_address);
    Port factor_mantissa = PORT(model, factor_mantissa);
    Port factor_shift = PORT(model, factor_shift);
    Port a_valid = PORT(model, a_valid);
    Port a_ready = PORT(model, a_ready);
    Port a_data = PORT(model, a_data);
    Port w_valid = PORT(model, w_valid);
    Port w_ready = PORT(model, w_ready);
    Port w_data = PORT(model, w_data);
    Port o_valid = PORT(model, o_valid);
    Port o_ready = PORT(model, o_ready);
    Port o_last = PORT(model, o_last);
    Port o_data = PORT(model, o_data);

    void idle() {
        for (const Port* port : {&cmd_valid, &table_write, &factor_write, &a_valid, &w_valid, &o_ready}) *port = 0;
    }

    void reset() {
        rst = 1;
        model.settle();
        model.edge();
        rst = 0;
    }

    uint32_t attempt(const Job& job, uint64_t cap, Stream a, Stream w, const Memories& memories,
                     std::vector<uint8_t>& out, uint64_t& cycles, uint64_t& fill_cycles) {
        uint64_t spent = 0;
        cycles = fill_cycles = 0;
        for (size_t i = 0; i < memories.table.size(); i++) {
            table_write = 1;
            table_address = i;
            table_data = memories.table[i];
            model.settle();
            model.edge();
        }
        table_write = 0;
        for (size_t i = 0; i < memories.factors.size(); i++) {
            factor_write = 1;
            factor_address = i;
            factor_mantissa = memories.factors[i] & 0xFFFF;
            factor_shift = memories.factors[i] >> 16;
            model.settle();
            model.edge();
        }
        factor_write = 0;
        cmd_tokens = job.tokens;
        cmd_k_tiles = job.k_tiles;
        cmd_tiles_high = job.tiles_high;
        cmd_tiles_low = job.tiles_low;
        cmd_stream = job.stream;
        cmd_table = job.use_table;
        cmd_symmetric = job.symmetric;
        cmd_unsigned = job.unsigned_acts;
        cmd_wide = job.wide;
        cmd_token_factor = job.token_factor;
        cmd_words = job.words;

        bool gemm = job.words == 0, commanded = false, waiting = false;
        uint8_t waiting_bytes[O_BYTES];
        uint64_t began = 0;
        uint32_t outputs = 0;
        while (true) {
            if (spent == cap) return 1;
            cmd_valid = !commanded;
            cmd_gemm = gemm;
            offer(a, a_valid, a_data, job.stall);
            offer(w, w_valid, w_data, job.stall);
            o_ready = !job.stall || random16() >= job.stall;
            model.settle();

            if (!commanded) {
                if (!cmd_ready) return 2;
                commanded = true;
                began = spent;
            }
            advance(a, a_ready);
            advance(w, w_ready);
            bool last = false;
            const uint8_t* bytes = o_data.bytes();
            if (waiting && (!o_valid || memcmp(bytes, waiting_bytes, O_BYTES))) return 2;
            waiting = o_valid && !o_ready;
            if (waiting) memcpy(waiting_bytes, bytes, O_BYTES);
            if (o_valid && o_ready) {
                out.insert(out.end(), bytes, bytes + O_BYTES);
                last = o_last;
                if (++outputs > job.o_beats || last != (outputs == job.o_beats)) return 2;
            }
            // The fill is over when all of its beats are taken; the command of the product follows in the next cycle.
            bool fill_over = commanded && !gemm && a.taken == a.beats;
            model.edge();
            spent++;
            if (fill_over) {
                fill_cycles = spent - began;
                gemm = true;
                commanded = false;
            }
            if (last) {
                cycles = spent - began;
                idle();
                return a.taken == a.beats && w.taken == w.beats ? 0 : 2;
            }
        }
    }
};

static void run_job(Bench& bench, const Job& job, uint64_t cap, FILE* jobs, FILE* results) {
    uint64_t cycles, fill_cycles;
    std::vector<uint8_t> a_bytes(size_t(job.a_beats) * A_BYTES), w_bytes(size_t(job.w_beats) * W_BYTES);
    Memories memories{std::vector<uint8_t>(job.table_bytes), std::vector<uint32_t>(job.factors)};
    std::vector<uint8_t> out;
    read_all(jobs, a_bytes.data(), a_bytes.size());
    read_all(jobs, w_bytes.data(), w_bytes.size());
    read_all(jobs, memories.table.data(), memories.table.size());
    read_all(jobs, memories.factors.data(), memories.factors.size());
    Stream a, w;
    a.data = a_bytes.data(), a.beat = A_BYTES, a.beats = job.a_beats;
    w.data = w_bytes.data(), w.beat = W_BYTES, w.beats = job.w_beats;
    uint32_t status = bench.run(job, cap, a, w, memories, out, cycles, fill_cycles);
    fwrite(&status, sizeof status, 1, results);
    fwrite(&cycles, sizeof cycles, 1, results);
    fwrite(&fill_cycles, sizeof fill_cycles, 1, results);
    if (status == 0) fwrite(out.data(), 1, out.size(), results);
}

int main(int argc, char** argv) { return run_all<Job, Bench>(argc, argv, run_job); }
