// SPDX-License-Identifier: Apache-2.0

/// What the operator can change of a device while a guest uses it.
public enum BackendChange {
    /// Puts another medium in, in place of the one that is there, if any. The specification has the
    /// parameters of the medium alone.
    ///
    /// `force`: although the guest has locked the medium, or what it wrote cannot be kept.
    case insert(DeviceSpecification, ReceivedDescriptor?, force: Bool)
    /// Takes the medium out.
    case eject(force: Bool)
    /// Replaces the rules by which a test device misbehaves.
    case faults(String)
}

/// A backend whose devices can be changed while they are plugged in.
public protocol ReconfigurableBackend: DeviceBackend {
    /// Makes a change, or says why it cannot be made; a kind of change that makes no sense for the
    /// backend is ``BackendError/unsupported(_:by:)``.
    ///
    /// - Parameter done: called once, on the loop, before this returns or later.
    func configure(
        _ change: BackendChange, whenDone done: @escaping (BackendError?) -> Void)
}

extension BackendError {
    /// The answer to a change that a backend does not know.
    public static func unsupported(
        _ change: BackendChange, by backend: any DeviceBackend
    ) -> BackendError {
        let scheme = type(of: backend).scheme
        return switch change {
        case .insert, .eject: BackendError("a device of the kind '\(scheme)' has no medium")
        case .faults: BackendError("a device of the kind '\(scheme)' makes no faults on demand")
        }
    }
}
