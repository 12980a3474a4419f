// A module of the RTL for a test bench, the same whether Verilator or yosys (CXXRTL, with -DCXXRTL) has generated it.
//
//     Model model;
//     Port o_valid = PORT(model, o_valid);
//
// Set inputs, settle(), read outputs, then edge(): the rising edge of `clk`. Verilator starts registers and memories
// with random values, CXXRTL with zeros.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// A port of any width, its bytes in order from the lowest. Values must not exceed its width.
class Port {
  public:
    Port(void* at, size_t size) : at(static_cast<uint8_t*>(at)), size(size) {}

    Port(const Port&) = default;
    Port& operator=(const Port&) = delete;
    const Port& operator=(uint64_t value) const {
        memset(at, 0, size);
        memcpy(at, &value, size < sizeof value ? size : sizeof value);
        return *this;
    }
    operator uint64_t() const {
        uint64_t value = 0;
        memcpy(&value, at, size < sizeof value ? size : sizeof value);
        return value;
    }
    void load(const uint8_t* from, size_t count) const { memcpy(at, from, count); }
    const uint8_t* bytes() const { return at; }

  private:
    uint8_t* at;
    size_t size;
};

#ifdef CXXRTL

#define CXXRTL_INCLUDE_CAPI_IMPL
#include "model.cc"

#define PORT(model, name) (model).port(#name)

class Model {
  public:
    Model() : handle(cxxrtl_create(cxxrtl_design_create())), clk(port("clk")) { clk = 0; }
    ~Model() { cxxrtl_destroy(handle); }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    Port port(const char* name) {
        cxxrtl_object* object = cxxrtl_get(handle, name);
        if (!object) {
            fprintf(stderr, "error: the model has no port %s\n", name);
            exit(1);
        }
        return Port(object->curr, (object->width + 31) / 32 * 4);
    }
    void settle() { cxxrtl_step(handle); }
    void edge() {
        clk = 1;
        cxxrtl_step(handle);
        clk = 0;
    }

  private:
    cxxrtl_handle handle;
    Port clk;
};

#else

#include "Vmodel.h"
#include "verilated.h"

#define PORT(model, name) Port(&(model).generated.name, sizeof (model).generated.name)

class Model {
  private:
    struct Context : VerilatedContext {
        Context() {
            randReset(2);
            randSeed(1);
        }
    } context;

  public:
    Vmodel generated;

    Model() : generated(&context) { generated.clk = 0; }

    void settle() { generated.eval(); }
    void edge() {
        generated.clk = 1;
        generated.eval();
        generated.clk = 0;
    }
};

#endif
