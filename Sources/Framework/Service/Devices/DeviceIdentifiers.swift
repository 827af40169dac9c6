// SPDX-License-Identifier: Apache-2.0

internal import BackendKit

/// Chooses the ids of devices: the operator's choice, or the scheme and a number.
///
/// No number is used twice, so that an id that a script has stored never names another device.
struct DeviceIdentifiers {
    /// The last number used for each scheme.
    private var numbers: [String: Int] = [:]

    /// Returns the id of a new device.
    ///
    /// - Parameters:
    ///   - wanted: the id in the request.
    ///   - taken: the ids of the existing devices.
    /// - Throws: if the id is malformed or taken, or the specification has a different one.
    mutating func identifier(
        for specification: DeviceSpecification, wanted: String?, taken: [String]
    ) throws(ControlError) -> String {
        let chosen: String?
        do throws(BackendError) {
            chosen = try specification.identifier()
            if let wanted { try DeviceSpecification.checkIdentifier(wanted) }
        } catch {
            throw ControlError(.refused, error.reason)
        }
        if let wanted, let chosen, wanted != chosen {
            throw ControlError(
                .badRequest, "the request has two ids for the device, '\(wanted)' and '\(chosen)'")
        }
        guard let id = wanted ?? chosen else { return next(specification.scheme, taken) }
        guard !taken.contains(id) else {
            throw ControlError(
                .idTaken, "there is a device '\(id)' already: choose another id, or detach it first"
            )
        }
        return id
    }

    private mutating func next(_ scheme: String, _ taken: [String]) -> String {
        while true {
            let number = (numbers[scheme] ?? 0) &+ 1
            numbers[scheme] = number
            let id = "\(scheme)-\(number)"
            if !taken.contains(id) { return id }
        }
    }
}
