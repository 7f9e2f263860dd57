#include "fastdigin_cpu.h"

extern "C" {

std::int32_t fastdigin_abi_version() { return kFastdiginAbiVersion; }

std::uint32_t fastdigin_cpu_features() {
  std::uint32_t features = 0;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) features |= kFastdiginAvx2;
  if (__builtin_cpu_supports("avx512f")) features |= kFastdiginAvx512f;
#endif
  return features;
}
}
