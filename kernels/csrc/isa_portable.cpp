// The kernels for any processor: four lanes are what SSE2 and NEON have.
#define FASTDIGIN_ISA portable
#define FASTDIGIN_LANES 4
#define FASTDIGIN_ROWS 4
#include "kernels.inl"
