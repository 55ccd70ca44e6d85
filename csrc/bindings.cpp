// The kernels as Python functions: check dtypes and shapes, release the GIL, run.
// Each has a Python twin of the same name; see the twin for shapes, units and what holes do.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cfloat>
#include <initializer_list>
#include <string>
#include <utility>

#include "arrays.h"
#include "gt_down.h"
#include "masked_gradient.h"
#include "r2_crop.h"

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
void check(const py::array& a, const char* name) {
    // Never converted silently: a hidden float64 copy is the slow path nobody notices.
    if (!py::dtype::of<T>().equal(a.dtype()))
        throw py::type_error(std::string(name) + ": expected dtype " +
                             std::string(py::str(py::dtype::of<T>())) + ", got " +
                             std::string(py::str(a.dtype())));
    const std::string got = text(a.shape(), static_cast<std::size_t>(a.ndim()));
    if (a.ndim() != static_cast<py::ssize_t>(N))
        throw py::value_error(std::string(name) + ": expected " + std::to_string(N) +
                              " axes, got shape " + got);
    for (std::size_t k = 0; k < N; ++k)
        if (a.shape(k) < 1 || a.shape(k) > kMaxSide)
            throw py::value_error(std::string(name) + ": every side must be in 1.." +
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
In<T, N> input(const py::array& a, const char* name) {
    check<T, N>(a, name);
    return fill<In<T, N>, N>({static_cast<const char*>(a.data()), {}, {}}, a);
}

template <class T, std::size_t N>
Out<T, N> output(py::array& a, const char* name) {
    check<T, N>(a, name);
    const std::string label = std::string(name) + ": ";
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
void expect(const View& view, const char* name, std::initializer_list<std::ptrdiff_t> sizes) {
    if (!std::equal(sizes.begin(), sizes.end(), view.shape.begin()))
        throw py::value_error(std::string(name) + ": expected shape " +
                              text(sizes.begin(), sizes.size()) + ", got " +
                              text(view.shape.data(), view.shape.size()));
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
    if (crop.first < 1 || crop.first > Hc || crop.second < 1 || crop.second > Wc)
        throw py::value_error("crop: expected 1.." + std::to_string(Hc) + " by 1.." +
                              std::to_string(Wc) + " (the canvas, metres), got (" +
                              std::to_string(crop.first) + ", " + std::to_string(crop.second) +
                              ")");
    if (!(depth_scale >= FLT_MIN && depth_scale <= FLT_MAX))
        throw py::value_error("depth_scale: expected a positive float32, got " +
                              std::to_string(depth_scale));
    const int h = static_cast<int>(crop.first), w = static_cast<int>(crop.second);

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
    if (low.shape[0] > metres.shape[0] || low.shape[1] > metres.shape[1])
        throw py::value_error("low: shape " + text(low.shape.data(), 2) +
                              " is larger than that of metres, " + text(metres.shape.data(), 2));
    const auto kernel = mode == "cell"       ? gt_down_cell
                        : mode == "nearest"  ? gt_down_nearest
                        : mode == "bilinear" ? gt_down_bilinear
                                             : nullptr;
    if (!kernel)
        throw py::value_error("mode: expected 'cell', 'nearest' or 'bilinear', got '" + mode + "'");

    py::gil_scoped_release unlocked;
    kernel(metres, low);
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
}
