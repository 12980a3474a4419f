// What the test benches share: streams with random pauses, job files, and the run over all jobs.
//
// A bench defines `struct Job`, a class `Bench`, and `run_job(Bench&, const Job&, uint64_t cap, FILE* jobs, FILE*
// results)`, which reads the rest of a job and writes its results; `run_all` then is its main program.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "model.h"

struct Stream {
    const uint8_t* data = nullptr;
    size_t beat = 0, taken = 0, beats = 0;
    bool offered = false;
};

static uint64_t random_state = 1;
static uint32_t random16() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 24) & 0xFFFF;
}

template <typename T> static void read_all(FILE* file, T* to, size_t count) {
    if (fread(to, sizeof(T), count, file) != count) {
        fprintf(stderr, "the job file is too short\n");
        exit(1);
    }
}

static void offer(Stream& s, const Port& valid, const Port& data, uint32_t stall) {
    if (!s.offered && s.taken < s.beats && (!stall || random16() >= stall)) s.offered = true;
    valid = s.offered;
    if (s.offered) data.load(s.data + s.taken * s.beat, s.beat);
}

static void advance(Stream& s, bool ready) {
    if (s.offered && ready) {
        s.offered = false;
        s.taken++;
    }
}

template <typename Job, typename Bench, typename RunJob> static int run_all(int argc, char** argv, RunJob run_job) {
    if (argc != 3) {
        fprintf(stderr, "usage: bench JOBS RESULTS\n");
        return 1;
    }
    Bench bench;
    FILE* jobs = fopen(argv[1], "rb");
    FILE* results = fopen(argv[2], "wb");
    if (!jobs || !results) {
        perror("bench");
        return 1;
    }
    uint32_t count;
    read_all(jobs, &count, 1);
    for (uint32_t i = 0; i < count; i++) {
        Job job;
        uint64_t cap;
        read_all(jobs, &job, 1);
        read_all(jobs, &cap, 1);
        run_job(bench, job, cap, jobs, results);
    }
    fclose(jobs);
    if (fclose(results)) {
        perror("bench");
        return 1;
    }
    return 0;
}
