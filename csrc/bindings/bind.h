// What the files of the bindings share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/integer.h"
#include "layout/layout.h"

PYBIND11_MAKE_OPAQUE(stoker::LaneHints);  // a class in Python, not a list

namespace stoker {

namespace py = pybind11;
using namespace py::literals;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// Looks a name up in a table of names and values.
template <typename Value, size_t kSize>
Value by_name(const std::pair<const char*, Value> (&table)[kSize], std::string_view name) {
  for (const auto& [known, value] : table)
    if (name == known) return value;
  throw ArgumentError(text("unknown name \"", name, "\"."));
}

/// Raises ArgumentError.
inline IntegerType integer_type(std::string_view type_name) {
  for (auto type : {IntegerType::kU8, IntegerType::kI8, IntegerType::kU16, IntegerType::kI16, IntegerType::kU32,
                    IntegerType::kI32, IntegerType::kU64, IntegerType::kI64})
    if (type_name == name(type)) return type;
  throw ArgumentError(text("unknown integer type \"", type_name, "\"."));
}

inline py::dtype dtype_of(IntegerType type) { return py::dtype(name(type)); }

/// A class of plain Python metaclass, so that type stubs can describe it, which Python does not subclass.
template <typename... Types, typename... Extra>
auto bind(py::module_& module, const char* class_name, const Extra&... extra) {
  const auto metaclass = py::metaclass(py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyType_Type)));
  return py::class_<Types...>(module, class_name, metaclass, py::is_final(), extra...);
}

/// Formats, buffers and engines (batches.cc).
void bind_batches(py::module_& m);

}  // namespace stoker
