// All kernels for one instruction set (see vec.h on what may be defined here).
#include "attention_backward.h"
#include "attention_forward.h"
#include "kernels.h"

namespace fastdigin::FASTDIGIN_ISA {

const Kernels kernels = {
    attention_forward_scratch,  attention_forward_tasks,  attention_forward,
    attention_backward_scratch, attention_backward_tasks, attention_backward,
};

}  // namespace fastdigin::FASTDIGIN_ISA
