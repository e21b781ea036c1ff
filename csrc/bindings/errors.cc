#include "bindings/errors.h"

#include <pybind11/pybind11.h>

#include <exception>

#include "base/error.h"

namespace py = pybind11;

namespace stoker {
namespace {

void raise(const py::object& type, const py::object& exception) { PyErr_SetObject(type.ptr(), exception.ptr()); }

void translate(std::exception_ptr error) {
  try {
    std::rethrow_exception(std::move(error));
  } catch (const ArgumentError& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const SystemError& e) {
    const py::object type = py::reinterpret_borrow<py::object>(PyExc_OSError);
    // OSError picks its subclass by errno.
    const py::object exception = e.path.empty() ? type(e.code, e.what()) : type(e.code, e.what(), e.path);
    raise(py::type::of(exception), exception);
  } catch (const CorruptShardError& e) {
    const py::object type = py::module_::import("stoker.errors").attr("CorruptShardError");
    const py::object sample =
        e.sample == CorruptShardError::kWholeShard ? py::object(py::none()) : py::object(py::int_(e.sample));
    raise(type, type(e.what(), e.path, sample));
  } catch (const SupplyError& e) {
    const py::object exception = py::module_::import("pickle").attr("loads")(py::bytes(e.pickled));
    raise(py::type::of(exception), exception);
  } catch (const ClosedError& e) {
    const py::object type = py::module_::import("stoker.errors").attr("LoaderClosedError");
    raise(type, type(e.what()));
  }
}

}  // namespace

void register_errors() { py::register_exception_translator(translate); }

}  // namespace stoker
