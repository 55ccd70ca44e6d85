// The kernels as Python functions: check dtypes and shapes, release the GIL, run.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "arrays.h"
#include "masked_gradient.h"
#include "pool.h"
#include "r2_batch.h"
#include "robust_cells.h"
#include "simd.h"

namespace py = pybind11;
using namespace litedepth;

namespace {

constexpr std::ptrdiff_t kAny = PTRDIFF_MIN;  // a side whose length is free

// Indices are 32 bit inside the kernels, and products of sides must fit in 64: this is well within.
constexpr std::ptrdiff_t kMaxSide = 1 << 20;

std::string text(const std::ptrdiff_t* sizes, std::size_t n) {
    std::string out = "(";
    for (std::size_t k = 0; k < n; ++k)
        out += (k ? ", " : "") + (sizes[k] == kAny ? "any" : std::to_string(sizes[k]));
    return out + (n == 1 ? ",)" : ")");
}

std::string shape_of(const py::array& a) {
    return text(a.shape(), static_cast<std::size_t>(a.ndim()));
}

std::string text(const py::handle& object) { return py::str(object); }

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
    throw py::value_error(name + ": " + why);
}

std::string entry(const char* name, std::ptrdiff_t b) {
    return std::string(name) + "[" + std::to_string(b) + "]";
}

// The arguments of one call. It holds on to the arrays until the call is over, and knows where they
// lie, those that are read and those that are written.
class Arguments {
 public:
    template <class T, std::size_t N>
    In<T, N> input(const py::handle& given, const std::string& name,
                   const std::array<std::ptrdiff_t, N>& shape) {
        const py::array a = checked<T, N>(given, name, shape);
        In<T, N> view{static_cast<const char*>(a.data()), {}, {}};
        Region region{name, a, reinterpret_cast<std::uintptr_t>(a.data()), 0};
        region.end = region.begin + sizeof(T);
        for (std::size_t k = 0; k < N; ++k) {
            view.shape[k] = a.shape(k);
            // numpy gives an axis of one element any stride, even one whose multiples overflow.
            view.stride[k] = a.shape(k) > 1 ? a.strides(k) : 0;
            const std::ptrdiff_t reach = (view.shape[k] - 1) * view.stride[k];
            (reach < 0 ? region.begin : region.end) += static_cast<std::uintptr_t>(reach);
        }
        read_.push_back(region);
        return view;
    }

    template <class T, std::size_t N>
    void output(const py::handle& given, const std::string& name,
                const std::array<std::ptrdiff_t, N>& shape, Out<T, N>& view) {
        py::array a = checked<T, N>(given, name, shape);
        if (!a.writeable()) refuse(name, "the output array is read-only");
        if (!(a.flags() & py::array::c_style) ||
            !(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
            refuse(name, "an output must lie in C order and aligned, got strides " +
                             text(a.strides(), N) + " of shape " + shape_of(a));
        view.data = static_cast<char*>(a.mutable_data());
        std::ptrdiff_t stride = sizeof(T);
        for (std::size_t k = N; k-- > 0; stride *= a.shape(k)) {
            view.shape[k] = a.shape(k);
            view.stride[k] = stride;
        }
        const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
        written_.push_back({name, a, begin, begin + static_cast<std::uintptr_t>(a.nbytes())});
    }

    // What is written may be neither read nor written elsewhere: the numbers would depend on order.
    void check_apart() const {
        for (auto out = written_.begin(); out != written_.end(); ++out) {
            for (const Region& other : read_) check_pair(*out, other);
            for (auto other = written_.begin(); other != out; ++other) check_pair(*out, *other);
        }
    }

 private:
    struct Region {
        std::string name;
        py::array array;
        std::uintptr_t begin, end;  // addresses from its first byte to beyond its last
    };

    template <class T, std::size_t N>
    static py::array checked(const py::handle& given, const std::string& name,
                             const std::array<std::ptrdiff_t, N>& shape) {
        if (!py::isinstance<py::array>(given))
            throw py::type_error(name + ": expected an array, got " +
                                 text(py::type::handle_of(given).attr("__name__")));
        const auto a = py::reinterpret_borrow<py::array>(given);
        // Never converted silently: a hidden float64 copy is the slow path nobody notices.
        if (!py::dtype::of<T>().equal(a.dtype()))
            throw py::type_error(name + ": expected dtype " + text(py::dtype::of<T>()) + ", got " +
                                 text(a.dtype()));
        bool same = a.ndim() == static_cast<py::ssize_t>(N);
        for (std::size_t k = 0; k < N && same; ++k)
            same = shape[k] == kAny || shape[k] == a.shape(k);
        if (!same) refuse(name, "expected shape " + text(shape.data(), N) + ", got " + shape_of(a));
        for (std::size_t k = 0; k < N; ++k)
            if (a.shape(k) < 1 || a.shape(k) > kMaxSide)
                refuse(name, "every side must be in 1.." + std::to_string(kMaxSide) +
                                 ", got shape " + shape_of(a));
        return a;
    }

    static void check_pair(const Region& out, const Region& other) {
        if (out.begin < other.end && other.begin < out.end)
            refuse(out.name, "the output of shape " + shape_of(out.array) +
                                 " shares memory with " + other.name + " of shape " +
                                 shape_of(other.array));
    }

    std::vector<Region> read_, written_;
};

void check_threads(int threads) {
    if (threads < 1) refuse("threads", "expected 1 or more, got " + std::to_string(threads));
}

void py_masked_gradient(const py::object& d_, const py::object& grad_x_, const py::object& grad_y_,
                        const py::object& M_x_, const py::object& M_y_) {
    Arguments call;
    const auto d = call.input<float, 2>(d_, "d", {kAny, kAny});
    Out<float, 2> grad_x, grad_y;
    Out<bool, 2> M_x, M_y;
    call.output(grad_x_, "grad_x", d.shape, grad_x);
    call.output(grad_y_, "grad_y", d.shape, grad_y);
    call.output(M_x_, "M_x", d.shape, M_x);
    call.output(M_y_, "M_y", d.shape, M_y);
    call.check_apart();

    py::gil_scoped_release unlocked;
    masked_gradient(d, grad_x, grad_y, M_x, M_y);
}

void py_robust_cells(const py::object& d_hat_, const py::object& d_, double alpha, double c,
                     int threads, const py::object& rho_, const py::object& slope_,
                     const py::object& count_) {
    Arguments call;
    const auto d_hat = call.input<float, 4>(d_hat_, "d_hat", {kAny, 1, kAny, kAny});
    const auto d = call.input<float, 4>(d_, "d", {d_hat.shape[0], 1, kAny, kAny});
    Out<float, 4> rho, slope, count;
    call.output(rho_, "rho", d_hat.shape, rho);
    call.output(slope_, "slope", d_hat.shape, slope);
    call.output(count_, "count", d_hat.shape, count);
    if (alpha != 1.0 && alpha != 2.0) refuse("alpha", "1 or 2; others take the PyTorch form");
    if (!(c >= 1e-30 && c <= 1e30))
        refuse("c", "expected 1e-30..1e30 metres, got " + text(py::float_(c)));
    check_threads(threads);
    call.check_apart();

    py::gil_scoped_release unlocked;
    robust_cells(d_hat, d, static_cast<int>(alpha), c, threads, rho, slope, count);
}

py::sequence list_of(const py::object& given, const char* name, std::ptrdiff_t B) {
    if (!py::isinstance<py::sequence>(given))
        throw py::type_error(std::string(name) + ": expected a list of arrays, got " +
                             text(py::type::handle_of(given).attr("__name__")));
    const auto list = py::reinterpret_borrow<py::sequence>(given);
    if (static_cast<std::ptrdiff_t>(list.size()) != B)
        refuse(name, "expected " + std::to_string(B) + " arrays (the length of affine), got " +
                         std::to_string(list.size()));
    return list;
}

GtDown gt_down(const std::string& mode) {
    if (mode == "cell") return GtDown::cell;
    if (mode == "nearest") return GtDown::nearest;
    if (mode == "bilinear") return GtDown::bilinear;
    refuse("mode", "expected 'cell', 'nearest' or 'bilinear', got '" + mode + "'");
}

// The outputs in `out`: these names, all of them and no others.
void check_names(const py::dict& out, bool pictures) {
    std::vector<std::string> names{"depth",  "depth_low", "grad_x",    "grad_y", "M_x",
                                   "M_y",    "cell_n",    "cell_mean", "cell_M2"};
    if (pictures) names.push_back("image");
    std::string missing, unknown;
    for (const std::string& name : names)
        if (!out.contains(name)) missing += " '" + name + "'";
    for (const auto& item : out)
        if (std::find(names.begin(), names.end(), text(item.first)) == names.end())
            unknown += " '" + text(item.first) + "'";
    if (missing.size()) refuse("out", "missing" + missing);
    if (unknown.size()) refuse("out", "unknown" + unknown + (pictures ? "" : " (rgb is None)"));
}

void py_r2_batch(const py::object& rgb_, const py::object& depth_, const py::object& affine_,
                 const py::object& crop_, const py::object& lut_, double depth_scale,
                 const py::object& logs_, const std::string& mode, int threads,
                 const py::dict& out) {
    Arguments call;
    Batch batch{};
    batch.affine = call.input<double, 3>(affine_, "affine", {kAny, 2, 3});
    const std::ptrdiff_t B = batch.affine.shape[0];
    const auto crop = call.input<std::int64_t, 2>(crop_, "crop", {B, 2});
    batch.lut = call.input<float, 3>(lut_, "lut", {B, 3, 256});
    const auto logs = call.input<float, 1>(logs_, "logs", {1 << 16});
    std::vector<float> spare;
    batch.logs = logs.read_row(spare);
    // Then no depth is inf, or 0.
    if (!(depth_scale >= 1e-30 && depth_scale <= 1e30))
        refuse("depth_scale", "expected 1e-30..1e30 sensor units per metre, got " +
                                  text(py::float_(depth_scale)));
    batch.depth_scale = static_cast<float>(depth_scale);
    batch.mode = gt_down(mode);
    check_threads(threads);

    check_names(out, !rgb_.is_none());
    call.output(out["depth"], "depth", {B, 1, kAny, kAny}, batch.depth);
    const std::ptrdiff_t Hc = batch.depth.shape[2], Wc = batch.depth.shape[3];
    call.output(out["depth_low"], "depth_low", {B, 1, kAny, kAny}, batch.depth_low);
    const auto& low = batch.depth_low.shape;
    if (low[2] > Hc || low[3] > Wc)
        refuse("depth_low", "shape " + text(&low[2], 2) + " is larger than that of depth, " +
                                text(&batch.depth.shape[2], 2));
    call.output(out["grad_x"], "grad_x", low, batch.grad_x);
    call.output(out["grad_y"], "grad_y", low, batch.grad_y);
    call.output(out["M_x"], "M_x", low, batch.M_x);
    call.output(out["M_y"], "M_y", low, batch.M_y);
    call.output(out["cell_n"], "cell_n", low, batch.cell_n);
    call.output(out["cell_mean"], "cell_mean", low, batch.cell_mean);
    call.output(out["cell_M2"], "cell_M2", low, batch.cell_M2);

    for (std::ptrdiff_t b = 0; b < B; ++b) {
        const std::int64_t h = crop(b, 0), w = crop(b, 1);
        if (h < 1 || h > Hc || w < 1 || w > Wc)
            refuse(entry("crop", b), "expected 1.." + std::to_string(Hc) + " by 1.." +
                                         std::to_string(Wc) + " (the canvas, depth), got (" +
                                         std::to_string(h) + ", " + std::to_string(w) + ")");
        batch.crop.push_back({static_cast<int>(h), static_cast<int>(w)});
    }
    if (!rgb_.is_none()) {
        call.output(out["image"], "image", {B, 3, kAny, kAny}, batch.image);
        const py::sequence list = list_of(rgb_, "rgb", B);
        for (std::ptrdiff_t b = 0; b < B; ++b)
            batch.rgb.push_back(
                call.input<std::uint8_t, 3>(list[b], entry("rgb", b), {kAny, kAny, 3}));
    }
    const py::sequence list = list_of(depth_, "depth", B);
    for (std::ptrdiff_t b = 0; b < B; ++b) {
        const py::object depth = list[b];
        In<std::uint16_t, 2> raw{};
        if (!depth.is_none()) {
            const std::ptrdiff_t H = batch.rgb.empty() ? kAny : batch.rgb[b].shape[0];
            const std::ptrdiff_t W = batch.rgb.empty() ? kAny : batch.rgb[b].shape[1];
            raw = call.input<std::uint16_t, 2>(depth, entry("depth", b), {H, W});
            if (std::abs(raw.stride[0]) * raw.shape[0] + std::abs(raw.stride[1]) * raw.shape[1] >
                INT32_MAX)
                refuse(entry("depth", b), "spans more than 2 GB");
        }
        batch.raw.push_back(raw);
    }
    call.check_apart();

    py::gil_scoped_release unlocked;
    r2_batch(batch, threads);
}

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

void py_set_isa(const std::string& name) {
    std::string have;
    for (int k = 0; k <= static_cast<int>(best_isa()); ++k) {
        if (name == kIsaNames[k]) {
            isa() = static_cast<Isa>(k);
            return;
        }
        have += (k ? ", '" : "'") + std::string(kIsaNames[k]) + "'";
    }
    refuse("name", "this processor runs " + have + ", got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(litedepth_kernels, m) {
    using py::arg;
    static_assert(sizeof(bool) == 1, "numpy's bool is one byte");
    m.doc() = "C++ kernels of LiteDepth. They write into arrays the caller allocated, in C order; "
              "inputs may have any strides, dtypes must match exactly, an output shares memory with "
              "no other argument, and the GIL is released. TypeError: a dtype, or no array; "
              "ValueError: anything else, before anything is written. Both name the argument.";
    m.attr("__version__") = LITEDEPTH_VERSION;
#ifdef LITEDEPTH_SANITIZE
    m.attr("sanitized") = true;
    m.def("undefined", [](double x) { return static_cast<int>(x) + 1; },
          "Undefined for 1e300 and for 2147483647, so that tests can see the sanitizer at work.",
          arg("x"));
#else
    m.attr("sanitized") = false;
#endif
    m.def("r2_batch", py_r2_batch,
          "Sec. 3.2 and Fig. 4 for B samples: rotate, flip, crop, resize and colour each by one "
          "affine map.\n\n"
          "rgb: list of (H, W, 3) uint8, or None (no image: another model's depths). depth: list of "
          "(H, W) uint16 in sensor units, 0 = hole; None in it: that sample's maps are 0. "
          "affine (B, 2, 3) float64: canvas pixel (u, v) (column, row; centres at integers) -> "
          "source pixel ((a00 u + a01 v) + a02, (a10 u + a11 v) + a12). crop (B, 2) int64: h, w, "
          "what is filled from the canvas' top left corner. lut (B, 3, 256) float32: grey level -> "
          "value. depth_scale: sensor units per metre. logs (65536,) float32: ln(d + eps) of Eq. 7 "
          "for every raw depth d. mode: 'cell' (mean of the depths of a cell), 'nearest' or "
          "'bilinear' (holes left out), the ground truth of Eq. 8 and 9. threads: how many to use; "
          "the numbers are the same for any.\n\n"
          "Writes into the arrays of the dict out: image (B, 3, hn, wn) float32, bilinear, black "
          "outside of the source, rounded, then lut, 0 beyond the crop; depth (B, 1, Hc, Wc) "
          "float32, metres, the nearest source depth; and of (B, 1, h, w) depth_low, grad_x, grad_y "
          "float32 and M_x, M_y bool (masked_gradient of depth_low), cell_n, cell_mean and cell_M2 "
          "float32: number, mean and sum of squared deviations of a cell's logs.",
          arg("rgb"), arg("depth"), arg("affine"), arg("crop"), arg("lut"), arg("depth_scale"),
          arg("logs"), arg("mode"), arg("threads"), arg("out"));
    m.def("masked_gradient", py_masked_gradient,
          "Eq. 8 / Fig. 4: write forward differences of d (H, W) float32 to grad_x and grad_y and "
          "where both of their pixels are depths (finite and above 0) to M_x and M_y, bool.",
          arg("d"), arg("grad_x"), arg("grad_y"), arg("M_x"), arg("M_y"));
    m.def("robust_cells", py_robust_cells,
          "Eq. 10, alpha 1 or 2: write, per cell of d_hat (N, 1, h, w), the sum of rho(d_hat - d) "
          "over the valid pixels of d (N, 1, H, W), of its derivative by d_hat, and their number.",
          arg("d_hat"), arg("d"), arg("alpha"), arg("c"), arg("threads"), arg("rho"), arg("slope"),
          arg("count"));
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
