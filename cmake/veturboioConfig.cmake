# The CMake package of veTurboIO. It lies in the installed Python package:
#
#     cmake -DCMAKE_PREFIX_PATH=$(python -c 'import veturboio; print(veturboio.cmake_prefix_path)')
#
#     find_package(veturboio REQUIRED)
#     target_link_libraries(program PRIVATE veturboio::veturboio)
#
# The target brings libtorch along. torch's own find_package(Torch) is not used, because beside a
# CUDA build of torch it insists on a CUDA toolkit, which reading files does not need. A project
# that has called find_package(Torch) before keeps the targets it got there.
#
# Where torch lies is found out in this order:
#   VETURBOIO_TORCH_DIR  the directory with torch's include/ and lib/, if you give it;
#   beside this package  <site-packages>/veturboio and <site-packages>/torch;
#   Python3_EXECUTABLE   the torch that this interpreter, or else `python3`, would import.

get_filename_component(_veturboio_package "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

set(_veturboio_torch_version "2.13")

set(VETURBOIO_TORCH_DIR "" CACHE PATH "The directory that holds torch's include/ and lib/")

# Leaves in `result` the directory of torch, or nothing, and then the reason in `fault`.
function(_veturboio_find_torch result fault)
  if(VETURBOIO_TORCH_DIR)
    set(directory "${VETURBOIO_TORCH_DIR}")
  else()
    get_filename_component(directory "${_veturboio_package}/../torch" ABSOLUTE)
    if(NOT EXISTS "${directory}/lib/libtorch.so")
      if(NOT Python3_EXECUTABLE)
        find_program(Python3_EXECUTABLE python3)
      endif()
      set(code "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
      execute_process(COMMAND "${Python3_EXECUTABLE}" -c "${code}"
                      OUTPUT_VARIABLE directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
  set(${result} "" PARENT_SCOPE)
  if(NOT EXISTS "${directory}/lib/libtorch.so")
    if(VETURBOIO_TORCH_DIR)
      set(${fault} "find torch: ${directory} has no lib/libtorch.so" PARENT_SCOPE)
    else()
      set(${fault} "find torch: it is neither beside ${_veturboio_package} nor known to python3, \
set VETURBOIO_TORCH_DIR" PARENT_SCOPE)
    endif()
    return()
  endif()
  # The C++ interface of torch changes with each minor version.
  set(version "")
  if(EXISTS "${directory}/version.py")
    file(STRINGS "${directory}/version.py" line REGEX "^__version__")
    string(REGEX MATCH "[0-9]+\\.[0-9]+" version "${line}")
  endif()
  if(version AND NOT version STREQUAL "${_veturboio_torch_version}")
    set(${fault} "find torch: ${directory} is version ${version}, veturboio was built for \
${_veturboio_torch_version}" PARENT_SCOPE)
    return()
  endif()
  set(${result} "${directory}" PARENT_SCOPE)
endfunction()

# Makes veturboio::torch, libtorch without Python, from the torch in `directory`.
function(_veturboio_add_torch directory)
  foreach(name IN ITEMS torch_cpu c10)
    add_library(veturboio::${name} SHARED IMPORTED)
    set_target_properties(veturboio::${name} PROPERTIES
      IMPORTED_LOCATION "${directory}/lib/lib${name}.so")
  endforeach()
  add_library(veturboio::torch INTERFACE IMPORTED)
  set_target_properties(veturboio::torch PROPERTIES
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
      "${directory}/include;${directory}/include/torch/csrc/api/include"
    INTERFACE_INCLUDE_DIRECTORIES
      "${directory}/include;${directory}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    # libtorch.so holds no code, it only depends on the parts of this build of torch: the CPU's
    # and, where there are any, those of accelerators, which register themselves when loaded.
    # No symbol refers to them, so the linker is told to keep the dependency.
    INTERFACE_LINK_LIBRARIES
      "-Wl,--push-state,--no-as-needed,\"${directory}/lib/libtorch.so\",--pop-state;veturboio::torch_cpu;veturboio::c10"
    # CMake would drop the directory from a program that is installed.
    INTERFACE_LINK_OPTIONS "LINKER:-rpath,${directory}/lib")
endfunction()

if(TARGET torch)
  set(_veturboio_torch torch)
  if(TARGET torch_library)
    # The same with `--no-as-needed`.
    set(_veturboio_torch torch_library torch)
  endif()
elseif(NOT TARGET veturboio::torch)
  _veturboio_find_torch(_veturboio_torch_directory veturboio_NOT_FOUND_MESSAGE)
  if(NOT _veturboio_torch_directory)
    set(veturboio_FOUND FALSE)
    return()
  endif()
  _veturboio_add_torch("${_veturboio_torch_directory}")
  set(_veturboio_torch veturboio::torch)
else()
  set(_veturboio_torch veturboio::torch)
endif()

if(NOT TARGET veturboio::veturboio)
  # A program that only runs scripted modules, or finds the operators by name, refers to no symbol
  # of the library: a linker that is told to link as needed, as Debian's is, would drop it, and the
  # operators with it. So the library is named a second time, as needed or not. As a link item and
  # no link option, because old policies of CMake do not hand options on through static libraries.
  add_library(veturboio::veturboio SHARED IMPORTED)
  set_target_properties(veturboio::veturboio PROPERTIES
    IMPORTED_LOCATION "${_veturboio_package}/libveturboio.so"
    IMPORTED_SONAME "libveturboio.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_veturboio_package}/include"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_LINK_LIBRARIES
      "-Wl,--push-state,--no-as-needed,\"${_veturboio_package}/libveturboio.so\",--pop-state;${_veturboio_torch}"
    INTERFACE_LINK_OPTIONS "LINKER:-rpath,${_veturboio_package}")
endif()

unset(_veturboio_torch)
unset(_veturboio_torch_directory)
unset(_veturboio_torch_version)
unset(_veturboio_package)
