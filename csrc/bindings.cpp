// The kernels as Python functions: check dtypes and shapes, release the GIL, run.
// Each has a Python twin of the same name; see the twin for shapes, units and what holes do.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "cell_loss.h"
#include "gt_down.h"
#include "masked_gradient.h"
#include "pool.h"
#include "r2_batch.h"
#include "r2_crop.h"
#include "simd.h"

namespace py = pybind11;
using namespace litedepth;

namespace {

// Indices are 32 bit inside the kernels, and products of sides must fit in 64: this is well within.
constexpr std::ptrdiff_t kMaxSide = 1 << 20;

// How long numpy may look for a byte that two arrays share; if undecided then, they are refused.
constexpr int kOverlapWork = 100000;

std::string text(const std::ptrdiff_t* sizes, std::size_t n) {
    std::string out = "(";
    for (std::size_t k = 0; k < n; ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
    return out + (n == 1 ? ",)" : ")");
}

std::string type_name(const py::object& given) {
    return py::str(py::type::of(given).attr("__name__"));
}

template <class T, std::size_t N>
void check(const py::array& a, const std::string& name) {
    // Never converted silently: a hidden float64 copy is the slow path nobody notices.
    if (!py::dtype::of<T>().equal(a.dtype()))
        throw py::type_error(name + ": expected dtype " +
                             std::string(py::str(py::dtype::of<T>())) + ", got " +
                             std::string(py::str(a.dtype())));
    const std::string got = text(a.shape(), static_cast<std::size_t>(a.ndim()));
    if (a.ndim() != static_cast<py::ssize_t>(N))
        throw py::value_error(name + ": expected " + std::to_string(N) +
                              " axes, got shape " + got);
    for (std::size_t k = 0; k < N; ++k)
        if (a.shape(k) < 1 || a.shape(k) > kMaxSide)
            throw py::value_error(name + ": every side must be in 1.." +
                                  std::to_string(kMaxSide) + ", got shape " + got);
}

// The arguments of one call. It holds on to the arrays until the call is over, and knows which of
// them are written, by name.
class Arguments {
 public:
    template <class T, std::size_t N>
    In<T, N> input(const py::object& given, const std::string& name) {
        const py::array a = array(given, name);
        check<T, N>(a, name);
        inputs_.push_back(region(a, name));
        return view<In<T, N>, N>(static_cast<const char*>(a.data()), a);
    }

    template <class T, std::size_t N>
    Out<T, N> output(const py::object& given, const std::string& name) {
        py::array a = array(given, name);
        check<T, N>(a, name);
        const std::string label = name + ": ";
        const std::string layout =
            "strides " + text(a.strides(), N) + " of shape " + text(a.shape(), N);
        if (!a.writeable()) throw py::value_error(label + "the output array is read-only");
        if (a.shape(N - 1) > 1 && a.strides(N - 1) != static_cast<py::ssize_t>(sizeof(T)))
            throw py::value_error(label + "the rows of an output must be contiguous, got " +
                                  layout);
        if (!(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
            throw py::value_error(label + "the output array is not aligned, got " + layout);
        if (overlaps_itself(a))
            throw py::value_error(label + "the output array overlaps itself, got " + layout);
        outputs_.push_back(region(a, name));
        return view<Out<T, N>, N>(static_cast<char*>(a.mutable_data()), a);
    }

    // What is written may be neither read nor written elsewhere: the numbers would depend on order.
    void check_apart() const {
        for (auto out = outputs_.begin(); out != outputs_.end(); ++out) {
            for (const Region& other : inputs_) check_pair(*out, other);
            for (auto other = outputs_.begin(); other != out; ++other) check_pair(*out, *other);
        }
    }

 private:
    struct Region {
        std::string name;
        py::array array;
        std::uintptr_t begin, end;  // addresses from its first byte to beyond its last
    };

    static py::array array(const py::object& given, const std::string& name) {
        if (!py::isinstance<py::array>(given))
            throw py::type_error(name + ": expected an array, got " + type_name(given));
        return py::reinterpret_borrow<py::array>(given);
    }

    // numpy gives an axis of one element any stride, even one whose multiples overflow: 0 instead.
    template <class View, std::size_t N, class Byte>
    static View view(Byte* data, const py::array& a) {
        View view{data, {}, {}};
        for (std::size_t k = 0; k < N; ++k) {
            view.shape[k] = a.shape(k);
            view.stride[k] = a.shape(k) > 1 ? a.strides(k) : 0;
        }
        return view;
    }

    static Region region(const py::array& a, const std::string& name) {
        Region found{name, a, reinterpret_cast<std::uintptr_t>(a.data()), 0};
        found.end = found.begin + static_cast<std::uintptr_t>(a.itemsize());
        for (py::ssize_t k = 0; k < a.ndim(); ++k) {
            if (a.shape(k) == 1) continue;
            const auto reach = static_cast<std::uintptr_t>((a.shape(k) - 1) * a.strides(k));
            (a.strides(k) < 0 ? found.begin : found.end) += reach;
        }
        return found;
    }

    // From the innermost axis out, each step must lead beyond all that the axes before it reach.
    static bool overlaps_itself(const py::array& a) {
        std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;
        for (py::ssize_t k = 0; k < a.ndim(); ++k)
            if (a.shape(k) > 1) axes.emplace_back(std::abs(a.strides(k)), a.shape(k));
        std::sort(axes.begin(), axes.end());
        py::ssize_t reach = a.itemsize();
        for (const auto& [stride, n] : axes) {
            if (stride < reach) return true;
            reach += stride * (n - 1);
        }
        return false;
    }

    // Slices of one buffer may lie between each other's rows: numpy tells these from an overlap.
    static void check_pair(const Region& out, const Region& other) {
        if (out.end <= other.begin || other.end <= out.begin) return;
        const auto may_share = py::module_::import("numpy").attr("may_share_memory");
        if (may_share(out.array, other.array, kOverlapWork).cast<bool>())
            throw py::value_error(out.name + ": the output of shape " + shape(out.array) +
                                  " shares memory with " + other.name + " of shape " +
                                  shape(other.array));
    }

    static std::string shape(const py::array& a) {
        return text(a.shape(), static_cast<std::size_t>(a.ndim()));
    }

    std::vector<Region> inputs_, outputs_;
};

template <class View>
void expect(const View& view, const std::string& name,
            std::initializer_list<std::ptrdiff_t> sizes) {
    if (!std::equal(sizes.begin(), sizes.end(), view.shape.begin()))
        throw py::value_error(name + ": expected shape " +
                              text(sizes.begin(), sizes.size()) + ", got " +
                              text(view.shape.data(), view.shape.size()));
}

std::array<int, 2> crop_size(const std::string& name, std::int64_t h, std::int64_t w,
                             std::ptrdiff_t Hc, std::ptrdiff_t Wc) {
    if (h < 1 || h > Hc || w < 1 || w > Wc)
        throw py::value_error(name + ": expected 1.." + std::to_string(Hc) + " by 1.." +
                              std::to_string(Wc) + " (the canvas, metres), got (" +
                              std::to_string(h) + ", " + std::to_string(w) + ")");
    return {static_cast<int>(h), static_cast<int>(w)};
}

void check_scale(double depth_scale) {
    if (!(depth_scale >= FLT_MIN && depth_scale <= FLT_MAX))
        throw py::value_error("depth_scale: expected a positive float32, got " +
                              std::to_string(depth_scale));
}

void check_down(const std::ptrdiff_t* low, const std::ptrdiff_t* metres) {
    if (low[0] > metres[0] || low[1] > metres[1])
        throw py::value_error("low: shape " + text(low, 2) + " is larger than that of metres, " +
                              text(metres, 2));
}

GtDown gt_down_mode(const std::string& mode) {
    const auto kernel = mode == "cell"       ? gt_down_cell
                        : mode == "nearest"  ? gt_down_nearest
                        : mode == "bilinear" ? gt_down_bilinear
                                             : nullptr;
    if (!kernel)
        throw py::value_error("mode: expected 'cell', 'nearest' or 'bilinear', got '" + mode + "'");
    return kernel;
}

void py_r2_crop(const py::object& rgb_, const py::object& depth_, const py::object& affine_,
                std::pair<std::int64_t, std::int64_t> crop, const py::object& lut_,
                const py::object& pad_, double depth_scale, const py::object& image_,
                const py::object& metres_) {
    Arguments call;
    const auto rgb = call.input<std::uint8_t, 3>(rgb_, "rgb");
    const auto depth = call.input<std::uint16_t, 2>(depth_, "depth");
    const auto affine = call.input<double, 2>(affine_, "affine");
    const auto lut = call.input<float, 2>(lut_, "lut");
    const auto pad = call.input<float, 1>(pad_, "pad");
    const auto image = call.output<float, 3>(image_, "image");
    const auto metres = call.output<float, 2>(metres_, "metres");
    expect(rgb, "rgb", {rgb.shape[0], rgb.shape[1], 3});
    expect(depth, "depth", {rgb.shape[0], rgb.shape[1]});
    expect(affine, "affine", {2, 3});
    expect(lut, "lut", {3, 256});
    expect(pad, "pad", {3});
    expect(image, "image", {3, image.shape[1], image.shape[2]});
    const std::ptrdiff_t Hc = metres.shape[0], Wc = metres.shape[1];
    const auto [h, w] = crop_size("crop", crop.first, crop.second, Hc, Wc);
    check_scale(depth_scale);
    call.check_apart();

    py::gil_scoped_release unlocked;
    crop_depth(depth, affine, h, w, static_cast<float>(depth_scale), metres);
    crop_image(rgb, affine, h, w, static_cast<int>(Hc), static_cast<int>(Wc), lut, pad, image);
}

void py_masked_gradient(const py::object& d_, const py::object& grad_x_, const py::object& grad_y_,
                        const py::object& M_x_, const py::object& M_y_) {
    Arguments call;
    const auto d = call.input<float, 2>(d_, "d");
    const auto grad_x = call.output<float, 2>(grad_x_, "grad_x");
    const auto grad_y = call.output<float, 2>(grad_y_, "grad_y");
    const auto M_x = call.output<bool, 2>(M_x_, "M_x");
    const auto M_y = call.output<bool, 2>(M_y_, "M_y");
    expect(grad_x, "grad_x", {d.shape[0], d.shape[1]});
    expect(grad_y, "grad_y", {d.shape[0], d.shape[1]});
    expect(M_x, "M_x", {d.shape[0], d.shape[1]});
    expect(M_y, "M_y", {d.shape[0], d.shape[1]});
    call.check_apart();

    py::gil_scoped_release unlocked;
    masked_gradient(d, grad_x, grad_y, M_x, M_y);
}

void py_gt_down(const py::object& metres_, const py::object& low_, const std::string& mode) {
    Arguments call;
    const auto metres = call.input<float, 2>(metres_, "metres");
    const auto low = call.output<float, 2>(low_, "low");
    check_down(low.shape.data(), metres.shape.data());
    const GtDown kernel = gt_down_mode(mode);
    call.check_apart();

    py::gil_scoped_release unlocked;
    kernel(metres, low);
}

void py_robust_cells(const py::object& d_hat_, const py::object& d_, double alpha, double c,
                     int threads, const py::object& rho_, const py::object& slope_,
                     const py::object& count_) {
    Arguments call;
    const auto d_hat = call.input<float, 4>(d_hat_, "d_hat");
    const auto d = call.input<float, 4>(d_, "d");
    const auto rho = call.output<float, 4>(rho_, "rho");
    const auto slope = call.output<float, 4>(slope_, "slope");
    const auto count = call.output<float, 4>(count_, "count");
    const std::ptrdiff_t N = d.shape[0], h = d_hat.shape[2], w = d_hat.shape[3];
    expect(d, "d", {N, 1, d.shape[2], d.shape[3]});
    expect(d_hat, "d_hat", {N, 1, h, w});
    expect(rho, "rho", {N, 1, h, w});
    expect(slope, "slope", {N, 1, h, w});
    expect(count, "count", {N, 1, h, w});
    if (std::isnan(alpha)) throw py::value_error("alpha: expected a number, got nan");
    if (!(c >= FLT_MIN && c <= FLT_MAX))
        throw py::value_error("c: expected a positive float32, got " + std::to_string(c));
    if (threads < 1)
        throw py::value_error("threads: expected 1 or more, got " + std::to_string(threads));
    call.check_apart();

    py::gil_scoped_release unlocked;
    robust_cells(d_hat, d, alpha, c, threads, rho, slope, count);
}

// --- r2_batch, and the instruction set that the kernels use

py::sequence list_of(const py::object& given, const char* name, std::ptrdiff_t B) {
    if (!py::isinstance<py::sequence>(given))
        throw py::type_error(std::string(name) + ": expected a list of arrays, got " +
                             type_name(given));
    const auto list = py::reinterpret_borrow<py::sequence>(given);
    if (static_cast<std::ptrdiff_t>(list.size()) != B)
        throw py::value_error(std::string(name) + ": expected " + std::to_string(B) +
                              " arrays (the length of affine), got " + std::to_string(list.size()));
    return list;
}

void py_r2_batch(const py::object& rgb_, const py::object& depth_, const py::object& affine_,
                 const py::object& crop_, const py::object& lut_, const py::object& pad_,
                 double depth_scale, const py::object& logs_, const std::string& mode, int threads,
                 const py::object& image_, const py::object& metres_, const py::object& low_,
                 const py::object& grad_x_, const py::object& grad_y_, const py::object& M_x_,
                 const py::object& M_y_, const py::object& cell_n_, const py::object& cell_mean_,
                 const py::object& cell_M2_) {
    Arguments call;
    const bool pictures = !rgb_.is_none();
    if (pictures == image_.is_none())
        throw py::value_error("rgb and image: both or neither may be None");
    Batch batch{};
    batch.affine = call.input<double, 3>(affine_, "affine");
    const std::ptrdiff_t B = batch.affine.shape[0];
    expect(batch.affine, "affine", {B, 2, 3});
    const auto crop = call.input<std::int64_t, 2>(crop_, "crop");
    expect(crop, "crop", {B, 2});
    batch.lut = call.input<float, 3>(lut_, "lut");
    expect(batch.lut, "lut", {B, 3, 256});
    batch.pad = call.input<float, 1>(pad_, "pad");
    expect(batch.pad, "pad", {3});
    check_scale(depth_scale);
    batch.depth_scale = static_cast<float>(depth_scale);
    const auto logs = call.input<float, 1>(logs_, "logs");
    expect(logs, "logs", {1 << 16});
    batch.gt_down = gt_down_mode(mode);
    if (threads < 1)
        throw py::value_error("threads: expected 1 or more, got " + std::to_string(threads));

    batch.metres = call.output<float, 4>(metres_, "metres");
    const std::ptrdiff_t Hc = batch.metres.shape[2], Wc = batch.metres.shape[3];
    expect(batch.metres, "metres", {B, 1, Hc, Wc});
    batch.low = call.output<float, 4>(low_, "low");
    const std::ptrdiff_t hl = batch.low.shape[2], wl = batch.low.shape[3];
    expect(batch.low, "low", {B, 1, hl, wl});
    check_down(&batch.low.shape[2], &batch.metres.shape[2]);
    const auto map = [&](auto& out, const py::object& array, const char* name, auto zero) {
        out = call.output<decltype(zero), 4>(array, name);
        expect(out, name, {B, 1, hl, wl});
    };
    map(batch.grad_x, grad_x_, "grad_x", 0.0f);
    map(batch.grad_y, grad_y_, "grad_y", 0.0f);
    map(batch.M_x, M_x_, "M_x", false);
    map(batch.M_y, M_y_, "M_y", false);
    map(batch.n, cell_n_, "cell_n", 0.0f);
    map(batch.mean, cell_mean_, "cell_mean", 0.0f);
    map(batch.M2, cell_M2_, "cell_M2", 0.0f);

    const auto name = [](const char* list, std::ptrdiff_t b) {
        return std::string(list) + "[" + std::to_string(b) + "]";
    };
    const py::sequence depths = list_of(depth_, "depth", B);
    for (std::ptrdiff_t b = 0; b < B; ++b) {
        const py::object depth = depths[static_cast<std::size_t>(b)];
        batch.depth.push_back(depth.is_none()
                                  ? In<std::uint16_t, 2>{nullptr, {}, {}}
                                  : call.input<std::uint16_t, 2>(depth, name("depth", b)));
    }
    for (std::ptrdiff_t b = 0; b < B; ++b)
        batch.crop.push_back(crop_size(name("crop", b), crop(b, 0), crop(b, 1), Hc, Wc));
    if (pictures) {
        batch.image = call.output<float, 4>(image_, "image");
        expect(batch.image, "image", {B, 3, batch.image.shape[2], batch.image.shape[3]});
        const py::sequence list = list_of(rgb_, "rgb", B);
        for (std::ptrdiff_t b = 0; b < B; ++b) {
            const py::object picture = list[static_cast<std::size_t>(b)];
            const auto rgb = call.input<std::uint8_t, 3>(picture, name("rgb", b));
            expect(rgb, name("rgb", b), {rgb.shape[0], rgb.shape[1], 3});
            batch.rgb.push_back(rgb);
        }
        for (std::ptrdiff_t b = 0; b < B; ++b)
            if (batch.depth[b].data)
                expect(batch.depth[b], name("depth", b),
                       {batch.rgb[b].shape[0], batch.rgb[b].shape[1]});
    }
    call.check_apart();

    std::vector<float> copy;
    batch.logs = reinterpret_cast<const float*>(logs.data);
    if (logs.stride[0] != sizeof(float) ||
        reinterpret_cast<std::uintptr_t>(logs.data) % alignof(float) != 0) {
        for (int k = 0; k < 1 << 16; ++k) copy.push_back(logs(k));
        batch.logs = copy.data();
    }

    py::gil_scoped_release unlocked;
    r2_batch(batch, threads);
}

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

void py_set_isa(const std::string& name) {
    for (int k = 0; k <= static_cast<int>(best_isa()); ++k)
        if (name == kIsaNames[k]) {
            isa() = static_cast<Isa>(k);
            return;
        }
    std::string have;
    for (int k = 0; k <= static_cast<int>(best_isa()); ++k)
        have += (k ? ", '" : "'") + std::string(kIsaNames[k]) + "'";
    throw py::value_error("name: this processor runs " + have + ", got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(litedepth_kernels, m) {
    using py::arg;
    static_assert(sizeof(bool) == 1, "numpy's bool is one byte");
    m.doc() = "C++ kernels of LiteDepth. They write into arrays the caller allocated; inputs may "
              "have any strides, dtypes must match exactly, an output shares memory with no other "
              "argument, and the GIL is released.";
    m.attr("__version__") = LITEDEPTH_VERSION;
#ifdef LITEDEPTH_SANITIZE
    m.attr("sanitized") = true;
    m.def("undefined", [](double x) { return static_cast<int>(x) + 1; },
          "Undefined for 1e300 and for 2147483647, so that tests can see the sanitizer at work.",
          arg("x"));
#else
    m.attr("sanitized") = false;
#endif
    m.def("r2_crop", py_r2_crop, "Sec. 3.2, R^2 crop: write image (3, hn, wn) and metres (Hc, Wc).",
          arg("rgb"), arg("depth"), arg("affine"), arg("crop"), arg("lut"), arg("pad"),
          arg("depth_scale"), arg("image"), arg("metres"));
    m.def("masked_gradient", py_masked_gradient,
          "Eq. 8 / Fig. 4: write forward differences of d (H, W) and where they are valid.",
          arg("d"), arg("grad_x"), arg("grad_y"), arg("M_x"), arg("M_y"));
    m.def("gt_down", py_gt_down,
          "Write metres (H, W) to low (h, w), holes left out; mode: cell, nearest or bilinear.",
          arg("metres"), arg("low"), arg("mode"));
    m.def("robust_cells", py_robust_cells,
          "Eq. 10: write, per cell of d_hat (N, 1, h, w), the sum of rho(d_hat - d) over the valid "
          "pixels of d (N, 1, H, W), of its derivative by d_hat, and their number.",
          arg("d_hat"), arg("d"), arg("alpha"), arg("c"), arg("threads"), arg("rho"), arg("slope"),
          arg("count"));

    m.def("r2_batch", py_r2_batch,
          "r2_crop, gt_down, masked_gradient and the cells' log-depth statistics of a whole batch, "
          "by `threads` threads.",
          arg("rgb"), arg("depth"), arg("affine"), arg("crop"), arg("lut"), arg("pad"),
          arg("depth_scale"), arg("logs"), arg("mode"), arg("threads"), arg("image"),
          arg("metres"), arg("low"), arg("grad_x"), arg("grad_y"), arg("M_x"), arg("M_y"),
          arg("cell_n"), arg("cell_mean"), arg("cell_M2"));
    m.def("isa", [] { return kIsaNames[static_cast<int>(isa().load())]; },
          "The instruction set in use: baseline, avx2 or avx512; results are the same bits in all.");
    m.def("set_isa", py_set_isa, "Use another one, for tests; ValueError if the CPU lacks it.",
          arg("name"));
    // Before the interpreter goes, so that no thread is left in code that is unloaded.
    py::module_::import("atexit").attr("register")(py::cpp_function([] {
        py::gil_scoped_release unlocked;
        Pool::here().stop();
    }));
}
