// Runs the steps of descriptors.h for one image after the other. There is one instance of each unit, and they take
// turns, as in the cost model.
#include "quasar_vit.h"

#include "descriptors.h"
#include "engine.h"
#include "vector.h"

#ifndef __SYNTHESIS__
void (*quasar_trace)(const char*, int, int, const std::vector<int32_t>&) = nullptr;
#endif

/// Cuts an image into patches: token (y, x), input (channel, row, column).
static void load_image(const int8_t* image, CodeWord* activations) {
    const int grid = IMAGE_SIZE / PATCH_SIZE;
    for (int channel = 0; channel < CHANNELS; channel++) {
        for (int y = 0; y < IMAGE_SIZE; y++) {
            for (int x = 0; x < IMAGE_SIZE; x++) {
#pragma HLS PIPELINE II = 1
                const int token = y / PATCH_SIZE * grid + x / PATCH_SIZE;
                const int input = (channel * PATCH_SIZE + y % PATCH_SIZE) * PATCH_SIZE + x % PATCH_SIZE;
                const int8_t code = image[(channel * IMAGE_SIZE + y) * IMAGE_SIZE + x];
                activations[input / ARRAY_INPUTS * (TOKENS - 1) + token][input % ARRAY_INPUTS] = uint8_t(code);
            }
        }
    }
}

/// The class token and the position embeddings into the residual stream, to which the patches are added. The class
/// token has no patch: its row of the wide buffer is zeros.
static void load_position(const Word* weights, WideWord* stream, WideWord* wide) {
    const int values = 32;  // of 64 bytes, to which sections are aligned
    for (int i = 0; i < ceil_div(TOKENS * WIDTH, values); i++) {
        uint8_t bytes[2 * values];
        read_words(weights + POSITION + i * (2 * values / WORD_BYTES), 2 * values / WORD_BYTES, bytes);
        for (int v = 0; v < values; v++) {
#pragma HLS PIPELINE
            const int f = (i * values + v) / WIDTH, c = (i * values + v) % WIDTH;
            if (f < TOKENS)
                stream[c / ARRAY_INPUTS * TOKENS + f][c % ARRAY_INPUTS] = int16_t(little16(bytes + 2 * v));
        }
    }
    for (int c = 0; c < WIDTH; c++) wide[c / ARRAY_INPUTS * TOKENS][c % ARRAY_INPUTS] = 0;
}

extern "C" void quasar_vit(const Word* weights, const int8_t* images, int16_t* logits, int count) {
#pragma HLS INTERFACE m_axi port = weights offset = slave bundle = weights depth = WEIGHT_WORDS
#pragma HLS INTERFACE m_axi port = images offset = slave bundle = data depth = IMAGE_CODES
#pragma HLS INTERFACE m_axi port = logits offset = slave bundle = data depth = CLASSES
#pragma HLS INTERFACE s_axilite port = count
#pragma HLS INTERFACE s_axilite port = return
    static CodeWord activations[ACTIVATION_WORDS], second[SECOND_WORDS], results[RESULT_WORDS];
    static WideWord stream[STREAM_WORDS], wide[WIDE_WORDS];
    static TokenFactors factors;
#pragma HLS ARRAY_PARTITION variable = activations complete dim = 2
#pragma HLS ARRAY_PARTITION variable = second complete dim = 2
#pragma HLS ARRAY_PARTITION variable = results complete dim = 2
#pragma HLS ARRAY_PARTITION variable = stream complete dim = 2
#pragma HLS ARRAY_PARTITION variable = wide complete dim = 2
    for (int image = 0; image < count; image++) {
        load_image(images + image * IMAGE_CODES, activations);
        load_position(weights, stream, wide);
        for (const Step& step : STEPS) {
            switch (step.unit) {
                case GEMM: run_gemm(GEMMS[step.index], weights, activations, second, factors, results, wide); break;
                case LAYERNORM: run_layernorm(LAYERNORMS[step.index], weights, stream, activations, results); break;
                case SOFTMAX: run_softmax(SOFTMAXES[step.index], weights, results, activations, factors); break;
                case RESIDUAL: run_residual(wide, stream); break;
            }
        }
        for (int c = 0; c < CLASSES; c++) {
#pragma HLS PIPELINE II = 1
            logits[image * CLASSES + c] = wide[c / ARRAY_INPUTS][c % ARRAY_INPUTS];
        }
    }
}
