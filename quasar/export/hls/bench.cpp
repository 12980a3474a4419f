// Runs the kernel on images from a file. From the folder of these files, with any g++:
//
//     g++ -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -o bench bench.cpp quasar_vit.cpp
//     ./bench check ../weights.bin images.bin logits.bin
//
// `check` compares the logits of all images with a file, and what every operation gives for the first image with the
// checksums in golden.h. `write` writes the logits instead, and with a fifth argument all tensors of the first image:
// of each a line "name type rows columns", and its values as int32.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "golden.h"
#include "quasar_vit.h"
#include "trace.h"

struct Tensor {
    std::string type;
    int rows, columns;
    std::vector<int32_t> values;
};

static std::vector<Tensor> tensors;

static void keep(const char* type, int rows, int columns, const std::vector<int32_t>& values) {
    tensors.push_back({type, rows, columns, values});
}

template <typename T> static std::vector<T> read_file(const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    std::vector<T> content;
    T buffer[4096 / sizeof(T)];
    while (const size_t count = fread(buffer, sizeof(T), 4096 / sizeof(T), file))
        content.insert(content.end(), buffer, buffer + count);
    fclose(file);
    return content;
}

static FILE* created(const char* path) {
    FILE* file = fopen(path, "wb");
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

static void closed(FILE* file, const char* path) {
    if (fclose(file)) {
        perror(path);
        exit(1);
    }
}

/// The checksum of PNG and zip (CRC-32).
static uint32_t checksum(const std::vector<int32_t>& values) {
    uint32_t crc = 0xFFFFFFFF;
    for (int32_t value : values) {
        for (int byte = 0; byte < 4; byte++) {
            crc ^= uint32_t(value) >> (8 * byte) & 255;
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
        }
    }
    return ~crc;
}

static int check(const std::vector<int16_t>& logits, const char* path) {
    int wrong = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
        if (checksum(tensors[i].values) != GOLDEN[i].checksum && !wrong++)
            printf("first wrong tensor: %s\n", GOLDEN[i].name);
    }
    const bool equal = read_file<int16_t>(path) == logits;
    printf("%zu tensors, %d wrong; logits of %zu images %s\n", tensors.size(), wrong, logits.size() / CLASSES,
           equal ? "equal" : "WRONG");
    return wrong || !equal;
}

static void write(const std::vector<int16_t>& logits, const char* logits_path, const char* tensors_path) {
    FILE* file = created(logits_path);
    fwrite(logits.data(), sizeof(int16_t), logits.size(), file);
    closed(file, logits_path);
    if (!tensors_path) return;
    file = created(tensors_path);
    for (size_t i = 0; i < tensors.size(); i++) {
        const Tensor& tensor = tensors[i];
        fprintf(file, "%s %s %d %d\n", GOLDEN[i].name, tensor.type.c_str(), tensor.rows, tensor.columns);
        fwrite(tensor.values.data(), sizeof(int32_t), tensor.values.size(), file);
    }
    closed(file, tensors_path);
}

int main(int argc, char** argv) {
    const bool checks = argc == 5 && !strcmp(argv[1], "check");
    if (!checks && !((argc == 5 || argc == 6) && !strcmp(argv[1], "write"))) {
        fprintf(stderr, "usage: bench check WEIGHTS IMAGES LOGITS, or bench write WEIGHTS IMAGES LOGITS [TENSORS]\n");
        return 2;
    }
    std::vector<uint8_t> bytes = read_file<uint8_t>(argv[2]);
    std::vector<Word> weights(WEIGHT_WORDS);
    if (bytes.size() > weights.size() * WORD_BYTES || bytes.size() + 64 <= weights.size() * WORD_BYTES) {
        fprintf(stderr, "%s: has %zu bytes, which are not those of this kernel\n", argv[2], bytes.size());
        return 1;
    }
    memcpy(static_cast<void*>(weights.data()), bytes.data(), bytes.size());
    const std::vector<int8_t> images = read_file<int8_t>(argv[3]);
    const size_t count = images.size() / IMAGE_CODES;
    if (count == 0 || images.size() % IMAGE_CODES) {
        fprintf(stderr, "%s: is no whole number of images of %d codes\n", argv[3], IMAGE_CODES);
        return 1;
    }
    std::vector<int16_t> logits(count * CLASSES);
    quasar_trace = keep;
    quasar_vit(weights.data(), images.data(), logits.data(), 1);
    quasar_trace = nullptr;
    if (count > 1) quasar_vit(weights.data(), images.data() + IMAGE_CODES, logits.data() + CLASSES, int(count - 1));
    if (checks) return check(logits, argv[4]);
    write(logits, argv[4], argc == 6 ? argv[5] : nullptr);
    return 0;
}
