// The kernel: a whole integer Vision Transformer on the accelerator that its weights.bin is made for.
#pragma once
#include "types.h"

/// Args:
///     weights: weights.bin, filled up with zeros to a multiple of 64 bytes.
///     images: codes (count, CHANNELS, IMAGE_SIZE, IMAGE_SIZE).
///     logits: codes (count, CLASSES), written.
extern "C" void quasar_vit(const Word* weights, const int8_t* images, int16_t* logits, int count);
