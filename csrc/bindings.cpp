// The kernels as Python functions: check dtypes and shapes, release the GIL, run.
// Each has a Python twin of the same name; see the twin for shapes, units and what holes do.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cfloat>
#include <cmath>
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

std::string text(const std::ptrdiff_t* sizes, std::size_t n) {
    std::string out = "(";
    for (std::size_t k = 0; k < n; ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
    return out + (n == 1 ? ",)" : ")");
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

template <class View, std::size_t N>
View fill(View view, const py::array& a) {
    for (std::size_t k = 0; k < N; ++k) {
        view.shape[k] = a.shape(k);
        view.stride[k] = a.strides(k);
    }
    return view;
}

template <class T, std::size_t N>
In<T, N> input(const py::array& a, const std::string& name) {
    check<T, N>(a, name);
    return fill<In<T, N>, N>({static_cast<const char*>(a.data()), {}, {}}, a);
}

template <class T, std::size_t N>
Out<T, N> output(py::array& a, const std::string& name) {
    check<T, N>(a, name);
    const std::string label = name + ": ";
    const std::string layout =
        "strides " + text(a.strides(), N) + " of shape " + text(a.shape(), N);
    if (!a.writeable()) throw py::value_error(label + "the output array is read-only");
    if (a.shape(N - 1) > 1 && a.strides(N - 1) != static_cast<py::ssize_t>(sizeof(T)))
        throw py::value_error(label + "the rows of an output must be contiguous, got " + layout);
    if (!(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
        throw py::value_error(label + "the output array is not aligned, got " + layout);
    return fill<Out<T, N>, N>({static_cast<char*>(a.mutable_data()), {}, {}}, a);
}

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

void py_r2_crop(const py::array& rgb_, const py::array& depth_, const py::array& affine_,
                std::pair<std::int64_t, std::int64_t> crop, const py::array& lut_,
                const py::array& pad_, double depth_scale, py::array image_, py::array metres_) {
    const auto rgb = input<std::uint8_t, 3>(rgb_, "rgb");
    const auto depth = input<std::uint16_t, 2>(depth_, "depth");
    const auto affine = input<double, 2>(affine_, "affine");
    const auto lut = input<float, 2>(lut_, "lut");
    const auto pad = input<float, 1>(pad_, "pad");
    const auto image = output<float, 3>(image_, "image");
    const auto metres = output<float, 2>(metres_, "metres");
    expect(rgb, "rgb", {rgb.shape[0], rgb.shape[1], 3});
    expect(depth, "depth", {rgb.shape[0], rgb.shape[1]});
    expect(affine, "affine", {2, 3});
    expect(lut, "lut", {3, 256});
    expect(pad, "pad", {3});
    expect(image, "image", {3, image.shape[1], image.shape[2]});
    const std::ptrdiff_t Hc = metres.shape[0], Wc = metres.shape[1];
    const auto [h, w] = crop_size("crop", crop.first, crop.second, Hc, Wc);
    check_scale(depth_scale);

    py::gil_scoped_release unlocked;
    crop_depth(depth, affine, h, w, static_cast<float>(depth_scale), metres);
    crop_image(rgb, affine, h, w, static_cast<int>(Hc), static_cast<int>(Wc), lut, pad, image);
}

void py_masked_gradient(const py::array& d_, py::array grad_x_, py::array grad_y_, py::array M_x_,
                        py::array M_y_) {
    const auto d = input<float, 2>(d_, "d");
    const auto grad_x = output<float, 2>(grad_x_, "grad_x");
    const auto grad_y = output<float, 2>(grad_y_, "grad_y");
    const auto M_x = output<bool, 2>(M_x_, "M_x");
    const auto M_y = output<bool, 2>(M_y_, "M_y");
    expect(grad_x, "grad_x", {d.shape[0], d.shape[1]});
    expect(grad_y, "grad_y", {d.shape[0], d.shape[1]});
    expect(M_x, "M_x", {d.shape[0], d.shape[1]});
    expect(M_y, "M_y", {d.shape[0], d.shape[1]});

    py::gil_scoped_release unlocked;
    masked_gradient(d, grad_x, grad_y, M_x, M_y);
}

void py_gt_down(const py::array& metres_, py::array low_, const std::string& mode) {
    const auto metres = input<float, 2>(metres_, "metres");
    const auto low = output<float, 2>(low_, "low");
    check_down(low.shape.data(), metres.shape.data());
    const GtDown kernel = gt_down_mode(mode);

    py::gil_scoped_release unlocked;
    kernel(metres, low);
}

void py_robust_cells(const py::array& d_hat_, const py::array& d_, double alpha, double c,
                     int threads, py::array rho_, py::array slope_, py::array count_) {
    const auto d_hat = input<float, 4>(d_hat_, "d_hat");
    const auto d = input<float, 4>(d_, "d");
    const auto rho = output<float, 4>(rho_, "rho");
    const auto slope = output<float, 4>(slope_, "slope");
    const auto count = output<float, 4>(count_, "count");
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

    py::gil_scoped_release unlocked;
    robust_cells(d_hat, d, alpha, c, threads, rho, slope, count);
}

// --- r2_batch, and the instruction set that the kernels use

// Entry b of a list of arrays, kept alive in `held`. Null data where it is None.
template <class T, std::size_t N>
In<T, N> entry(const py::sequence& list, std::int64_t b, const char* list_name,
               std::vector<py::object>& held) {
    const std::string name = std::string(list_name) + "[" + std::to_string(b) + "]";
    held.push_back(list[static_cast<std::size_t>(b)]);
    if (held.back().is_none()) return In<T, N>{nullptr, {}, {}};
    if (!py::isinstance<py::array>(held.back()))
        throw py::type_error(name + ": expected an array, got " +
                             std::string(py::str(py::type::of(held.back()).attr("__name__"))));
    return input<T, N>(py::reinterpret_borrow<py::array>(held.back()), name);
}

void expect_length(const py::sequence& list, const char* name, std::ptrdiff_t B) {
    if (static_cast<std::ptrdiff_t>(list.size()) != B)
        throw py::value_error(std::string(name) + ": expected " + std::to_string(B) +
                              " arrays (the length of affine), got " + std::to_string(list.size()));
}

void py_r2_batch(const py::object& rgb_, const py::sequence& depth_, const py::array& affine_,
                 const py::array& crop_, const py::array& lut_, const py::array& pad_,
                 double depth_scale, const py::array& logs_, const std::string& mode, int threads,
                 py::object image_, py::array metres_, py::array low_, py::array grad_x_,
                 py::array grad_y_, py::array M_x_, py::array M_y_, py::array cell_n_,
                 py::array cell_mean_, py::array cell_M2_) {
    const bool pictures = !rgb_.is_none();
    if (pictures == image_.is_none())
        throw py::value_error("rgb and image: both or neither may be None");
    Batch batch{};
    batch.affine = input<double, 3>(affine_, "affine");
    const std::ptrdiff_t B = batch.affine.shape[0];
    expect(batch.affine, "affine", {B, 2, 3});
    const auto crop = input<std::int64_t, 2>(crop_, "crop");
    expect(crop, "crop", {B, 2});
    batch.lut = input<float, 3>(lut_, "lut");
    expect(batch.lut, "lut", {B, 3, 256});
    batch.pad = input<float, 1>(pad_, "pad");
    expect(batch.pad, "pad", {3});
    check_scale(depth_scale);
    batch.depth_scale = static_cast<float>(depth_scale);
    const auto logs = input<float, 1>(logs_, "logs");
    expect(logs, "logs", {1 << 16});
    batch.gt_down = gt_down_mode(mode);
    if (threads < 1)
        throw py::value_error("threads: expected 1 or more, got " + std::to_string(threads));

    batch.metres = output<float, 4>(metres_, "metres");
    const std::ptrdiff_t Hc = batch.metres.shape[2], Wc = batch.metres.shape[3];
    expect(batch.metres, "metres", {B, 1, Hc, Wc});
    batch.low = output<float, 4>(low_, "low");
    const std::ptrdiff_t hl = batch.low.shape[2], wl = batch.low.shape[3];
    expect(batch.low, "low", {B, 1, hl, wl});
    check_down(&batch.low.shape[2], &batch.metres.shape[2]);
    const auto map = [&](auto& out, py::array& array, const char* name, auto zero) {
        out = output<decltype(zero), 4>(array, name);
        expect(out, name, {B, 1, hl, wl});
    };
    map(batch.grad_x, grad_x_, "grad_x", 0.0f);
    map(batch.grad_y, grad_y_, "grad_y", 0.0f);
    map(batch.M_x, M_x_, "M_x", false);
    map(batch.M_y, M_y_, "M_y", false);
    map(batch.n, cell_n_, "cell_n", 0.0f);
    map(batch.mean, cell_mean_, "cell_mean", 0.0f);
    map(batch.M2, cell_M2_, "cell_M2", 0.0f);

    std::vector<py::object> held;
    expect_length(depth_, "depth", B);
    for (std::ptrdiff_t b = 0; b < B; ++b) {
        batch.depth.push_back(entry<std::uint16_t, 2>(depth_, b, "depth", held));
        batch.crop.push_back(crop_size("crop[" + std::to_string(b) + "]", crop(b, 0), crop(b, 1),
                                       Hc, Wc));
    }
    if (pictures) {
        if (!py::isinstance<py::sequence>(rgb_) || !py::isinstance<py::array>(image_))
            throw py::type_error("rgb and image: expected a list of arrays and an array");
        const auto list = py::reinterpret_borrow<py::sequence>(rgb_);
        expect_length(list, "rgb", B);
        auto array = py::reinterpret_borrow<py::array>(image_);
        batch.image = output<float, 4>(array, "image");
        expect(batch.image, "image", {B, 3, batch.image.shape[2], batch.image.shape[3]});
        for (std::ptrdiff_t b = 0; b < B; ++b) {
            const std::string name = "[" + std::to_string(b) + "]";
            const auto rgb = entry<std::uint8_t, 3>(list, b, "rgb", held);
            if (!rgb.data) throw py::type_error("rgb" + name + ": expected an array, got NoneType");
            expect(rgb, "rgb" + name, {rgb.shape[0], rgb.shape[1], 3});
            if (batch.depth[b].data)
                expect(batch.depth[b], "depth" + name, {rgb.shape[0], rgb.shape[1]});
            batch.rgb.push_back(rgb);
        }
    }
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
              "have any strides, dtypes must match exactly, and the GIL is released.";
    m.attr("__version__") = LITEDEPTH_VERSION;
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
          arg("rgb").none(true), arg("depth"), arg("affine"), arg("crop"), arg("lut"), arg("pad"),
          arg("depth_scale"), arg("logs"), arg("mode"), arg("threads"), arg("image").none(true),
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
