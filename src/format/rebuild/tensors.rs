//! The calls that make tensors over storages, and parameters of tensors.

use super::{is_known, malformed, unknown, Reader};
use crate::format::{
    dtype::TorchDtype,
    pytorch::{Meaning, Tensor},
    value::{Ref, Value},
    Malformed, Refusal,
};

impl<'a> Reader<'a> {
    pub(super) fn tensor(
        &mut self,
        args: &'a [Ref],
        dtype: Option<Ref>,
        metadata: Option<&Ref>,
    ) -> Result<Meaning, Refusal> {
        if let Some(Value::Dict(flags)) = metadata.map(|&flags| self.pickle.value(flags)) {
            if !flags.is_empty() {
                return unknown("a tensor that is conjugated or negated");
            }
        }
        let (shape, strides) = (self.tuple(args[2])?, self.tuple(args[3])?);
        self.charge(shape.len() + strides.len())?;
        let storage = self.storage(args[0])?;
        let dtype = match dtype.map(|dtype| self.pickle.value(dtype)) {
            None => self.read.storages[storage].dtype,
            Some(Value::Global("torch", name)) => match TorchDtype::from_name(name) {
                Some(dtype) => dtype,
                None => return malformed(format!("{name} is no dtype")),
            },
            Some(_) => return malformed("a tensor's dtype is no dtype"),
        };
        let tensor = Tensor {
            storage,
            dtype,
            offset: self.int(args[1])?,
            shape: self.ints(shape)?,
            strides: self.ints(strides)?,
            requires_grad: args.get(4).map_or(Ok(false), |&arg| self.bool(arg))?,
        };
        let byte_len = self.read.storages[storage].byte_len;
        tensor.check(byte_len).map_err(Malformed::new)?;
        self.read.tensors.push(tensor);
        Ok(Meaning::Tensor(self.read.tensors.len() - 1))
    }

    /// A parameter is a tensor of its own over the storage of another.
    pub(super) fn parameter(&mut self, data: Ref, requires_grad: bool) -> Result<Meaning, Refusal> {
        let no_tensor = || Refusal::from(Malformed::new("a parameter of what is no tensor"));
        let Value::Call(call) = self.pickle.value(data) else { return Err(no_tensor()) };
        // Looked at before the call is: parameters of parameters could nest without end.
        let made = match self.pickle.value(call.callable) {
            Value::Global(_, name) if name.starts_with("_rebuild_tensor") => self.call(&call)?,
            Value::Global(module, name) if !is_known(module, name) => {
                return unknown(format!("{module}.{name}"))
            }
            _ => return Err(no_tensor()),
        };
        let Meaning::Tensor(tensor) = made else { return Err(no_tensor()) };
        // The call was looked at for this parameter alone; where the pickle uses its result
        // elsewhere, it is looked at again.
        let parameter = &mut self.read.tensors[tensor];
        parameter.requires_grad = requires_grad;
        let byte_len = self.read.storages[parameter.storage].byte_len;
        parameter.check(byte_len).map_err(Malformed::new)?;
        Ok(Meaning::Parameter { tensor, requires_grad })
    }
}
