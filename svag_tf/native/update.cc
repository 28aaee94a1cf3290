// The updates of a list of variables as one TensorFlow operation on the CPU.
//
// Every element is read once and written once. The rule is that of svag_tf/rules.py and
// svag_tf/optimizers/base.py, in their order of operations, and with one rounding for a
// product and a sum where XLA has it: the bits are those of the XLA kernel.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace svag {

// Vectors of the compiler: the same code for every machine, and without branches.
constexpr int kLanes = 8;
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));

inline Floats All(float x) { return x - Floats{}; }

// A NaN stays.
inline Floats AtMost(Floats x, float most) {
#if defined(__AVX__)
  return _mm256_min_ps(All(most), x);
#else
  return All(most) < x ? All(most) : x;
#endif
}

inline Floats AtLeast(Floats x, float least) {
#if defined(__AVX__)
  return _mm256_max_ps(All(least), x);
#else
  return All(least) > x ? All(least) : x;
#endif
}

// a b + c with one rounding, where the machine, and so XLA, has that.
inline Floats Fma(Floats a, Floats b, Floats c) {
#if defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
  for (int k = 0; k < kLanes; ++k) c[k] = __builtin_fmaf(a[k], b[k], c[k]);
  return c;
#else
  return a * b + c;
#endif
}

inline Floats Sqrt(Floats x) {
#if defined(__AVX__)
  return _mm256_sqrt_ps(x);
#else
  for (int k = 0; k < kLanes; ++k) x[k] = std::sqrt(x[k]);
  return x;
#endif
}

inline Floats Abs(Floats x) { return (Floats)((Bits)x & 0x7fffffffu); }

inline Bits Smaller(Bits x, Bits y) { return x < y ? x : y; }
inline Bits Larger(Bits x, Bits y) { return x > y ? x : y; }

inline auto IsFinite(Floats x) { return Abs(x) <= All(FLT_MAX); }

inline Floats Sign(Floats x) {
  const Floats one = (Floats)(((Bits)x & 0x80000000u) | (Bits)All(1));
  return Abs(x) > All(0) ? one : x;  // 0, -0 and NaN stay.
}

inline Floats SaturatingSquare(Floats x) { return AtMost(x * x, 0.25f * FLT_MAX); }

inline Floats Average(Floats average, Floats value, Floats one_minus_beta) {
  return average + Fma(one_minus_beta, value, -(one_minus_beta * average));
}

inline Floats Polynomial(Floats x, std::initializer_list<float> coefficients) {
  Floats sum{};
  for (const float c : coefficients) sum = Fma(sum, x, All(c));
  return sum;
}

// XLA's approximation, for x >= 0.
inline Floats Erf(Floats x) {
  x = AtMost(x, 0x1.df38dp+1f);
  const Floats y = x * x;
  return x *
         Polynomial(y, {0x1.e05aa2p-13f, 0x1.bebb44p-9f, 0x1.a16dd6p-5f, 0x1.7b4e8p-3f,
                        0x1.20dd74p+0f}) /
         Polynomial(y, {-0x1.fa720cp-24f, 0x1.8b11bep-16f, 0x1.0ada5p-10f,
                        0x1.cd0fa8p-7f, 0x1.c69842p-4f, 0x1.fd6894p-2f, 1.0f});
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Damping { kNone, kGradient, kGaussian, kAdam };

// The grid of the paper: along g or the average m, or its sign, and how it is damped.
template <bool momentum, bool sign, Damping damping>
struct Method {
  static constexpr bool kMomentum = momentum, kSign = sign;
  static constexpr Damping kDamping = damping;
  static constexpr bool kHasV = damping != Damping::kNone;
  static constexpr bool kHasM = momentum || kHasV;
  static constexpr int kSlots = kHasM + kHasV;
};

// The numbers of one variable: a row of the input `scalars`; see update.py.
struct Scalars {
  float learning_rate, decay, beta, one_minus_beta, correction, factor;
};

template <bool guarded>
inline Floats Corrected(Floats m_average, const Scalars& s) {
  const Floats m = m_average * s.correction;
  return guarded ? AtLeast(AtMost(m, FLT_MAX), -FLT_MAX) : m;
}

// gamma for the averages m and v, uncorrected; see rules.py. For kGaussian the argument
// of the error function, infinite where gamma is 1.
template <class M, bool guarded>
inline Floats Gamma(Floats m_average, Floats v_average, const Scalars& s) {
  const Floats m = Corrected<guarded>(m_average, s);
  const Floats m2 = guarded ? SaturatingSquare(m) : m * m;
  // Where v is used twice, XLA rounds it.
  const Floats excess =
      AtLeast(M::kMomentum && M::kSign ? v_average * s.correction - m2
                                       : Fma(v_average, All(s.correction), -m2),
              0);
  Floats signal = m2, variance = excess;
  if (guarded) {
    const Floats scale = Abs(m) < All(0x1p-32f) ? All(0x1p64f) : All(1);
    variance = AtMost(excess * scale * scale, FLT_MAX);
    signal = SaturatingSquare(m * scale);
  }
  if (M::kDamping == Damping::kGaussian) {
    const Floats noise = s.factor * variance;
    const Floats root = Sqrt(signal / (2 * noise));
    const Floats argument = signal >= 72 * noise ? All(kInfinity) : root;
    return signal == 0 ? All(0) : argument;
  }
  const Floats sum = Fma(All(s.factor), variance, signal);
  const Floats gamma = signal / (signal == 0 ? All(1) : sum);
  return M::kDamping == Damping::kAdam ? Sqrt(gamma) : gamma;
}

// learning_rate * direction; see `MomentOptimizer.new_theta`.
template <class M, bool guarded>
inline Floats Step(Floats g, Floats m_average, Floats v_average, Floats gamma,
                   const Scalars& s) {
  const Floats along = M::kMomentum ? Corrected<guarded>(m_average, s) : g;
  Floats step = M::kSign ? Sign(along) : along;
  // The same in fewer instructions: without NaN, and gamma is 0 where m is.
  if (M::kHasV && M::kMomentum && M::kSign && !guarded)
    step = (Floats)((Bits)gamma | ((Bits)along & 0x80000000u));
  else if (M::kHasV)
    step = gamma * step;
  if (M::kHasV && M::kMomentum && M::kSign)
    step = (v_average * s.correction == 0) & (g == 0) ? All(0) : step;
  step *= s.learning_rate;
  if (!guarded) return step;
  const Floats nan = All(std::numeric_limits<float>::quiet_NaN());
  return IsFinite(M::kHasM ? m_average : g) ? step : nan;
}

// What a slot holds of a float32. `Store` returns what will be read.
struct Float32 {
  using Type = float;
  static Floats Load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  template <bool guarded>
  static Floats Store(float* to, Floats x) {
    std::memcpy(to, &x, sizeof x);
    return x;
  }
};

struct BFloat16 {
  using Type = uint16_t;
  static Floats Widened(Halves x) {
    return (Floats)(__builtin_convertvector(x, Bits) << 16);
  }
  static Floats Load(const uint16_t* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return Widened(x);
  }
  template <bool guarded>
  static Floats Store(uint16_t* to, Floats x) {
    constexpr float kMost = 0x1.fep127f;
    if (guarded) x = IsFinite(x) ? AtMost(AtLeast(x, -kMost), kMost) : x;
    Bits bits = (Bits)x;
    bits += 0x7fffu + ((bits >> 16) & 1u);
    if (guarded) bits = x != x ? Bits{} + 0x7fc00000u : bits;
    const Bits kept = bits >> 16;
#if defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32((__m256i)kept, (__m256i)kept);
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0b1000);
    const Halves halves = (Halves)_mm256_castsi256_si128(ordered);
#else
    const Halves halves = __builtin_convertvector(kept, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
    return (Floats)(bits & 0xffff0000u);
  }
};

// The variable's, the slots' and the gradient's elements from one on; unused slots are
// null.
struct Arrays {
  float* theta;
  void *m, *v;
  const float* gradient;
};

// Elements that are updated together, and how far ahead their memory is fetched.
constexpr int kStretch = 64;
constexpr int64_t kAhead = 512;

// What is computed of a stretch; in steps of their own, so that none waits for another.
struct alignas(32) Computed {
  float m[kStretch], v[kStretch], gamma[kStretch];
};

// Computes the averages. Returns whether they are so ordinary that no guard matters:
// finite, and the squares of m and g neither overflow nor lose digits.
template <class M, class Slot>
inline bool Observe(const typename Slot::Type* m, const typename Slot::Type* v,
                    const float* gradient, const Scalars& s, Computed* computed) {
  const Floats rate = All(s.one_minus_beta);
  Bits least = ~Bits{}, most{};
  for (int i = 0; i < kStretch; i += kLanes) {
    const Floats g = Float32::Load(gradient + i);
    if (M::kHasM) {
      const Floats x = Average(Slot::Load(m + i), g, rate);
      Float32::Store<false>(computed->m + i, x);
      least = Smaller(least, (Bits)Abs(x) - 1);  // 0 is ordinary.
      most = Larger(most, (Bits)Abs(x));
    } else {
      most = Larger(most, (Bits)Abs(g));
    }
    if (M::kHasV) {
      const Floats x = Average(Slot::Load(v + i), SaturatingSquare(g), rate);
      Float32::Store<false>(computed->v + i, x);
      most = Larger(most, (Bits)x);
    }
  }
  // Of floats that are not negative, the bits have their order.
  const auto ordinary =
      (Bits)((least >= (Bits)All(0x1p-31f)) & (most < (Bits)All(0x1p30f)));
  uint32_t all = ~0u;
  for (int k = 0; k < kLanes; ++k) all &= ordinary[k];
  return all && s.correction >= 1 && s.correction < 0x1p30f;
}

template <class M, class Slot, bool decays, bool guarded>
inline void Apply(float* theta, typename Slot::Type* m, typename Slot::Type* v,
                  const float* gradient, const Scalars& s, Computed* computed) {
  const auto load = Float32::Load;
  const auto store = Float32::Store<false>;
  for (int i = 0; i < kStretch; i += kLanes) {
    float *m_i = computed->m + i, *v_i = computed->v + i;
    if (M::kHasM) store(m_i, Slot::template Store<guarded>(m + i, load(m_i)));
    if (!M::kHasV) continue;
    store(v_i, Slot::template Store<guarded>(v + i, load(v_i)));
    store(computed->gamma + i, Gamma<M, guarded>(load(m_i), load(v_i), s));
  }
  if (M::kDamping == Damping::kGaussian)
    for (float* x = computed->gamma; x < computed->gamma + kStretch; x += kLanes)
      store(x, load(x) == kInfinity ? All(1) : Erf(load(x)));
  for (int i = 0; i < kStretch; i += kLanes) {
    Floats x = load(theta + i);
    if (decays) x = Fma(All(-s.decay), x, x);
    store(theta + i, x - Step<M, guarded>(load(gradient + i), load(computed->m + i),
                                          load(computed->v + i),
                                          load(computed->gamma + i), s));
  }
}

// Updates n elements.
template <class M, class Slot, bool decays>
void UpdateBlock(int64_t n, const Arrays& arrays, const Scalars& scalars) {
  using Type = typename Slot::Type;
  const Scalars s = scalars;
  float* theta = arrays.theta;
  Type* m = static_cast<Type*>(arrays.m);
  Type* v = static_cast<Type*>(arrays.v);
  const float* gradient = arrays.gradient;
  Computed computed;
  const auto update = [&](float* theta, Type* m, Type* v, const float* gradient) {
    if (Observe<M, Slot>(m, v, gradient, s, &computed))
      Apply<M, Slot, decays, false>(theta, m, v, gradient, s, &computed);
    else
      Apply<M, Slot, decays, true>(theta, m, v, gradient, s, &computed);
  };
  int64_t i = 0;
  for (; i + kStretch <= n; i += kStretch) {
    // Sooner than the processor does by itself. Addresses beyond the end do no harm.
    for (int64_t ahead = i + kAhead; ahead < i + kAhead + kStretch; ahead += 16) {
      __builtin_prefetch(theta + ahead);
      __builtin_prefetch(gradient + ahead);
      if (M::kHasM) __builtin_prefetch(m + ahead);
      if (M::kHasV) __builtin_prefetch(v + ahead);
    }
    update(theta + i, m + i, v + i, gradient + i);
  }
  if (i == n) return;
  // The rest, in copies with further elements.
  float some_theta[kStretch] = {}, some_gradient[kStretch] = {};
  Type some_m[kStretch] = {}, some_v[kStretch] = {};
  const int64_t rest = n - i, bytes = rest * sizeof(float), slot = rest * sizeof(Type);
  std::memcpy(some_theta, theta + i, bytes);
  std::memcpy(some_gradient, gradient + i, bytes);
  if (M::kHasM) std::memcpy(some_m, m + i, slot);
  if (M::kHasV) std::memcpy(some_v, v + i, slot);
  update(some_theta, some_m, some_v, some_gradient);
  std::memcpy(theta + i, some_theta, bytes);
  if (M::kHasM) std::memcpy(m + i, some_m, slot);
  if (M::kHasV) std::memcpy(v + i, some_v, slot);
}
}  // namespace svag

namespace tensorflow {
namespace {

using svag::Arrays;
using svag::Damping;
using svag::Method;
using svag::Scalars;

using Function = void (*)(int64_t, const Arrays&, const Scalars&);

struct Rule {
  const char* method;
  int slots;
  Function float32[2], bfloat16[2];  // Without weight decay, and with it.
};

template <class M>
constexpr Rule RuleOf(const char* method) {
  using svag::UpdateBlock;
  return {method,
          M::kSlots,
          {UpdateBlock<M, svag::Float32, false>, UpdateBlock<M, svag::Float32, true>},
          {UpdateBlock<M, svag::BFloat16, false>, UpdateBlock<M, svag::BFloat16, true>}};
}

constexpr Rule kRules[] = {
    RuleOf<Method<true, false, Damping::kNone>>("msgd"),
    RuleOf<Method<false, true, Damping::kNone>>("ssd"),
    RuleOf<Method<true, true, Damping::kNone>>("mssd"),
    RuleOf<Method<false, false, Damping::kGradient>>("svag"),
    RuleOf<Method<true, false, Damping::kGradient>>("msvag"),
    RuleOf<Method<false, true, Damping::kGaussian>>("svas_gaussian"),
    RuleOf<Method<false, true, Damping::kAdam>>("svas_adam"),
    RuleOf<Method<true, true, Damping::kGaussian>>("msvas_gaussian"),
    RuleOf<Method<true, true, Damping::kAdam>>("msvas_adam"),
};

constexpr int64_t kBlock = 16384;  // Elements of a piece of work.
constexpr int64_t kCyclesPerElement = 2;  // About; decides on the number of threads.

REGISTER_OP("Svag>Update")
    .Attr("method: string")
    .Attr("slot_dtype: {float, bfloat16}")
    .Attr("decays: list(bool) >= 1")
    .Attr("N: int >= 1")
    .Attr("S: int >= 0")
    .Input("variables: N * resource")
    .Input("slots: S * resource")
    .Input("gradients: N * float")
    .Input("scalars: float")
    .SetIsStateful()
    .SetShapeFn([](shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"(
Updates variables and their slots, and returns when it is done.

method: One of the nine rules.
decays: Whether weight decay applies to each variable.
variables: float32.
slots: Of `slot_dtype`: m~ of all variables, then v~ of all, if the method has them.
gradients: Of the variables' shapes.
scalars: Shape (N, 6); learning rate, learning rate times weight decay, beta, 1 - beta,
  1 / (1 - beta^t), and the noise factor.
)");

class UpdateOp : public OpKernel {
 public:
  explicit UpdateOp(OpKernelConstruction* context) : OpKernel(context) {
    std::string method;
    DataType dtype;
    OP_REQUIRES_OK(context, context->GetAttr("method", &method));
    OP_REQUIRES_OK(context, context->GetAttr("slot_dtype", &dtype));
    OP_REQUIRES_OK(context, context->GetAttr("decays", &decays_));
    OP_REQUIRES_OK(context, context->GetAttr("N", &n_));
    OP_REQUIRES_OK(context, context->GetAttr("S", &slots_));
    for (const Rule& rule : kRules)
      if (method == rule.method) rule_ = &rule;
    OP_REQUIRES(context, rule_ != nullptr,
                errors::InvalidArgument("There is no method ", method));
    OP_REQUIRES(context, slots_ == rule_->slots * n_ && decays_.size() == n_,
                errors::InvalidArgument(method, " has ", rule_->slots,
                                        " slots for each variable. Received: ", n_,
                                        " variables, ", slots_, " slots and ",
                                        decays_.size(), " flags"));
    narrow_ = dtype == DT_BFLOAT16;
  }

  void Compute(OpKernelContext* context) override {
    std::vector<core::RefCountPtr<Var>> vars(n_ + slots_);
    for (int i = 0; i < n_ + slots_; ++i)
      OP_REQUIRES_OK(context,
                     LookupResource(context, HandleFromInput(context, i), &vars[i]));
    // Always in the same order, so that two operations cannot block each other.
    std::vector<mutex*> mutexes;
    for (const auto& var : vars) mutexes.push_back(var->mu());
    std::sort(mutexes.begin(), mutexes.end());
    OP_REQUIRES(
        context, std::adjacent_find(mutexes.begin(), mutexes.end()) == mutexes.end(),
        errors::InvalidArgument("A variable is updated twice by one operation"));
    std::vector<std::unique_ptr<mutex_lock>> locks;
    for (mutex* each : mutexes) locks.push_back(std::make_unique<mutex_lock>(*each));

    const int inputs = n_ + slots_;
    const Tensor& scalars = context->input(inputs + n_);
    OP_REQUIRES(context, scalars.shape() == TensorShape({n_, 6}),
                errors::InvalidArgument("scalars must have the shape (", n_, ", 6)"));
    // Everything is checked before anything changes.
    for (int i = 0; i < inputs; ++i) {
      const Tensor& value = *vars[i]->tensor();
      const Tensor& gradient = context->input(inputs + i % n_);
      const DataType dtype = i < n_ || !narrow_ ? DT_FLOAT : DT_BFLOAT16;
      OP_REQUIRES(context, value.IsInitialized() && value.dtype() == dtype,
                  errors::FailedPrecondition("A variable or slot is not initialized, or "
                                             "is not of the dtype ",
                                             DataTypeString(dtype)));
      OP_REQUIRES(context, value.shape() == gradient.shape(),
                  errors::InvalidArgument(
                      "Shapes must be compatible. Received: a variable or slot of shape ",
                      value.shape().DebugString(), " and a gradient of shape ",
                      gradient.shape().DebugString()));
    }
    std::vector<char*> memory(3 * n_, nullptr);
    for (int i = 0; i < inputs; ++i)
      OP_REQUIRES_OK(context, OwnMemory(context, vars[i].get(), &memory[i]));

    std::vector<int64_t> ends(n_);  // Blocks of all variables up to each.
    int64_t blocks = 0, elements = 0;
    for (int i = 0; i < n_; ++i) {
      const int64_t size = context->input(inputs + i).NumElements();
      elements += size;
      ends[i] = blocks += (size + kBlock - 1) / kBlock;
    }
    if (blocks == 0) return;
    const int64_t slot_bytes = narrow_ ? 2 : 4;
    const auto update = [&](int64_t from, int64_t to) {
      int i = std::upper_bound(ends.begin(), ends.end(), from) - ends.begin();
      for (int64_t block = from; block < to; ++block) {
        while (block >= ends[i]) ++i;
        const Tensor& gradient = context->input(inputs + i);
        const int64_t start = (block - (i ? ends[i - 1] : 0)) * kBlock;
        const int64_t size = std::min(kBlock, gradient.NumElements() - start);
        const auto slot = [&](int which) {
          char* all = memory[which * n_ + i];
          return all ? all + start * slot_bytes : nullptr;
        };
        const Arrays arrays = {reinterpret_cast<float*>(memory[i]) + start, slot(1),
                               slot(2), gradient.flat<float>().data() + start};
        Scalars numbers;
        std::memcpy(&numbers, scalars.flat<float>().data() + 6 * i, sizeof numbers);
        const Function* functions = narrow_ ? rule_->bfloat16 : rule_->float32;
        functions[decays_[i]](size, arrays, numbers);
      }
    };
    const auto* workers = context->device()->tensorflow_cpu_worker_threads();
    Shard(workers->num_threads, workers->workers, blocks,
          kCyclesPerElement * (1 + elements / blocks), update);
  }

 private:
  // Returns the memory of a variable's value, which nothing else holds.
  static Status OwnMemory(OpKernelContext* context, Var* var, char** memory) {
    Tensor* value = var->tensor();
    if (!value->RefCountIsOne()) {  // Somebody reads the value that it has now.
      Tensor copy;
      TF_RETURN_IF_ERROR(context->allocate_temp(value->dtype(), value->shape(), &copy));
      std::memcpy(copy.data(), value->data(), value->TotalBytes());
      *value = copy;
    }
    *memory = static_cast<char*>(value->data());
    return absl::OkStatus();
  }

  const Rule* rule_ = nullptr;
  std::vector<bool> decays_;
  int n_ = 0, slots_ = 0;
  bool narrow_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Svag>Update").Device(DEVICE_CPU), UpdateOp);

}  // namespace
}  // namespace tensorflow
