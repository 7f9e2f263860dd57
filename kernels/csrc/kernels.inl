// All kernels for one instruction set (see vec.h on what may be defined here).
#include "attention_backward.h"
#include "attention_forward.h"
#include "conv3x3.h"
#include "geglu.h"
#include "group_norm_silu.h"
#include "kernels.h"

namespace fastdigin::FASTDIGIN_ISA {

const Kernels kernels = {
    {attention_forward_tasks, attention_forward_scratch, attention_forward},
    {attention_backward_tasks, attention_backward_scratch, attention_backward},
    {group_norm_silu_tasks, group_norm_silu_scratch, group_norm_silu_forward},
    {group_norm_silu_tasks, group_norm_silu_scratch, group_norm_silu_backward},
    {geglu_tasks, no_scratch, geglu_forward},
    {geglu_tasks, no_scratch, geglu_backward},
    {conv3x3_tasks, conv3x3_scratch, conv3x3},
};

}  // namespace fastdigin::FASTDIGIN_ISA
