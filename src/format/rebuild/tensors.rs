//! The calls that make tensors over storages, and parameters of tensors.

use super::{is_known, unknown, Reader};
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
        match metadata.map(|&flags| self.pickle.value(flags)) {
            None | Some(Value::None) => {}
            Some(Value::Dict(flags)) if flags.is_empty() => {}
            Some(_) => return unknown("a tensor that is conjugated or negated"),
        }
        let (shape, strides) = (self.tuple(args[2])?, self.tuple(args[3])?);
        self.charge(shape.len() + strides.len())?;
        let storage = self.storage(args[0])?;
        let dtype = match dtype.map(|dtype| self.pickle.value(dtype)) {
            None => self.read.storages[storage].dtype,
            Some(Value::Global("torch", name)) => match TorchDtype::from_name(name) {
                Some(dtype) => dtype,
                None => return unknown(format!("torch.{name} as a dtype")),
            },
            Some(_) => return unknown("a tensor's dtype that is no dtype"),
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

    /// The tensor that an instance of a subclass is, without its class and attributes.
    pub(super) fn subclass(&mut self, args: &'a [Ref]) -> Result<Meaning, Refusal> {
        let no_tensor = "a subclass of torch.Tensor that is no plain tensor";
        let &[function, _, args, _] = args else { return unknown(no_tensor) };
        let args = self.tuple(args)?;
        match (self.class(function), args.len()) {
            (Some(("torch._utils", "_rebuild_tensor_v2")), 6 | 7) => {
                self.tensor(args, None, args.get(6))
            }
            (Some(("torch._utils", "_rebuild_tensor_v3")), 7 | 8) => {
                self.tensor(args, Some(args[6]), args.get(7))
            }
            _ => unknown(no_tensor),
        }
    }

    /// A parameter is a tensor of its own over the storage of another.
    pub(super) fn parameter(&mut self, data: Ref, requires_grad: bool) -> Result<Meaning, Refusal> {
        let no_tensor = || Refusal::Unknown("a parameter of what is no plain tensor".to_owned());
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
