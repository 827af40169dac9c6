// SPDX-License-Identifier: Apache-2.0

/// A form of device name that stands for a specification without naming a backend, such as
/// `/dev/bus/usb/BUS/ADDRESS`.
///
/// A backend lists its forms in ``DeviceBackend/bareNames``. The catalog tries the forms of all
/// backends in order, and uses the first that recognises the name.
public struct BareName: Sendable {
    /// The form with its variable parts in capitals, for help texts.
    public let form: String

    private let translate: @Sendable (String) -> String?

    /// Declares a form of bare name.
    ///
    /// - Parameters:
    ///   - form: the form with its variable parts in capitals.
    ///   - translate: returns the specification that a name stands for, such as
    ///     `host:bus=1,address=4`, or `nil` for a name of another form. It opens nothing.
    public init(_ form: String, translate: @escaping @Sendable (String) -> String?) {
        self.form = form
        self.translate = translate
    }

    /// Returns the specification that a name stands for, or `nil` for a name of another form.
    func specification(for name: String) -> String? { translate(name) }
}
