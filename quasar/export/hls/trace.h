// What every operation gives, for a test bench.
#pragma once
#ifndef __SYNTHESIS__
#include <cstdint>
#include <vector>

/// Told of every tensor, in the order of the operations: the type and all values, row by row. None by default.
extern void (*quasar_trace)(const char* type, int rows, int columns, const std::vector<int32_t>& values);

template <typename Value> void trace(const char* type, int rows, int columns, Value value) {
    if (!quasar_trace) return;
    std::vector<int32_t> values;
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) values.push_back(value(row, column));
    quasar_trace(type, rows, columns, values);
}
#endif
