// Calls functions of the library for a program on another kind of processor: requests on stdin, answers on stdout, as
// remote_library.py writes and reads them. All arguments are words in memory or in registers, so one call fits all.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "bf16.h"
#include "topkast.h"

typedef uint64_t Word;
typedef Word (*Function)(Word, Word, Word, Word, Word, Word, Word, Word, Word);

static const struct {
    const char* name;
    void* function;
} FUNCTIONS[] = {
#define F(name) {#name, reinterpret_cast<void*>(&name)}
    F(tk_isa_best), F(tk_isa), F(tk_bf16), F(tk_set_isa), F(tk_width), F(tk_workspace), F(tk_spmm_t_workspace), F(tk_pack),
    F(tk_spmm), F(tk_spmm_t),
    F(tk_sddmm), F(tk_conv_workspace), F(tk_conv_forward), F(tk_conv_input_grad), F(tk_conv_weight_grad), F(tk_dense),
    F(tk_gather), F(tk_squares), F(tk_scale_explored_once), F(tk_assemble), F(tk_store), F(tk_follow), F(tk_largest),
    F(tk_build_index),
#undef F
};

template <class T>
static T get() {
    T found;
    if (fread(&found, sizeof found, 1, stdin) != 1) exit(0);
    return found;
}

static std::vector<char> bytes() {
    std::vector<char> found(get<uint64_t>());
    if (!found.empty() && fread(found.data(), 1, found.size(), stdin) != found.size()) exit(1);
    return found;
}

int main() {
    const tk_parallel serial{tk_run_serial, nullptr, 1};
    for (;;) {
        const std::vector<char> name = bytes();
        void* function = nullptr;
        for (const auto& one : FUNCTIONS)
            if (std::string(one.name) == std::string(name.data(), name.size())) function = one.function;
        if (!function) exit(2);
        std::deque<std::vector<char>> held, returned;
        Word words[9] = {}, count = 0;
        const auto address = [](std::vector<char>& buffer) { return reinterpret_cast<uint64_t>(buffer.data()); };
        for (uint32_t n = get<uint32_t>(); n; --n) {
            switch (get<uint8_t>()) {
                case 'w': words[count++] = get<uint64_t>(); break;
                case 'p': words[count++] = reinterpret_cast<uint64_t>(&serial); break;
                case 'k': words[count++] = address(held.emplace_back(get<uint64_t>())); break;
                case 'b': words[count++] = address(returned.emplace_back(bytes())); break;
                case 's': {  // a struct, then what its pointers point to
                    std::vector<char>& made = held.emplace_back(bytes());
                    for (uint32_t pointers = get<uint32_t>(); pointers; --pointers) {
                        const uint32_t offset = get<uint32_t>();
                        const uint64_t at = address(returned.emplace_back(bytes()));
                        memcpy(made.data() + offset, &at, sizeof at);
                    }
                    words[count++] = address(made);
                    break;
                }
                default: exit(3);
            }
        }
        const auto& w = words;
        const auto call = reinterpret_cast<Function>(function);
        const Word result = call(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]);
        fwrite(&result, sizeof result, 1, stdout);
        for (const auto& buffer : returned) fwrite(buffer.data(), 1, buffer.size(), stdout);
        fflush(stdout);
    }
}
