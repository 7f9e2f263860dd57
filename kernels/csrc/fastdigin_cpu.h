// C ABI of the CPU kernels, loaded with ctypes by fastdigin_kernels/native.py.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define FASTDIGIN_EXPORT __declspec(dllexport)
#else
#define FASTDIGIN_EXPORT __attribute__((visibility("default")))
#endif

// Raised whenever a signature or the meaning of a value below changes; native.py refuses any other.
inline constexpr std::int32_t kFastdiginAbiVersion = 1;

// Bits of fastdigin_cpu_features(); native.py names them in this order.
inline constexpr std::uint32_t kFastdiginAvx2 = 1u << 0;  // AVX2 with FMA
inline constexpr std::uint32_t kFastdiginAvx512f = 1u << 1;

extern "C" {

FASTDIGIN_EXPORT std::int32_t fastdigin_abi_version();

// Instruction sets that this processor AND its operating system allow, found at run time: 0 means
// portable code only. Always 0 on other architectures than x86-64 and with compilers without
// __builtin_cpu_supports.
FASTDIGIN_EXPORT std::uint32_t fastdigin_cpu_features();
}
