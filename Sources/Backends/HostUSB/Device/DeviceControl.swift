// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform
internal import USB

/// The blocking half of an opened device: claims, configurations, resets.
///
/// Used by one thread at a time: that of the worker, and before it the one that starts the device.
/// It knows which interfaces are ours and which of them a driver of the host's had before.
final class DeviceControl: Sendable {
    private struct State {
        /// Numbers of the interfaces that are claimed.
        var claimed: [UInt8] = []
        /// Numbers of those from which a kernel driver was taken, which gets them back.
        var borrowed: [UInt8] = []
        /// The configuration in which the device was found.
        var original: UInt8?
        /// Addresses of the endpoints that have streams.
        var streamed: [UInt8] = []
        var isGivenBack = false
    }

    private let pointer: LibUSBHandle.Pointer
    /// The kernel's directory of the device and its node, for looking up who holds an interface.
    private let portPath: String
    private let node: String
    private let state = Locked(State())

    init(_ pointer: LibUSBHandle.Pointer, portPath: String, node: String) {
        self.pointer = pointer
        self.portPath = portPath
        self.node = node
    }

    /// Whether ``giveBack()`` has ended.
    var isGivenBack: Bool { state.withLock { $0.isGivenBack } }

    func close() { pointer.close() }

    // MARK: - Claims

    /// What came of claiming the interfaces of a configuration.
    struct Claims: Equatable {
        var claimed: [UInt8] = []
        /// One sentence for each interface that somebody else keeps.
        var problems: [String] = []
        var isGone = false
        /// If the host has fewer streams than the device.
        var streams: StreamLimit?
        var endpoints = InterfaceEndpoints(in: [])
    }

    /// Takes all interfaces of the configuration in which the device is found.
    func begin() -> Claims {
        let active: UInt8?
        do throws(LibUSBError) {
            active = try activeConfiguration()?.value
        } catch {
            return Claims(isGone: true)
        }
        state.withLock { $0.original = active }
        var claims = claimAll()
        let descriptors = SystemFiles.descriptors(of: portPath)
        claims.endpoints = InterfaceEndpoints(in: descriptors)
        let endpoint = active.flatMap {
            StreamEndpoint.greatest(in: descriptors, configuration: $0)
        }
        if let endpoint, claims.claimed.contains(endpoint.interface) {
            claims.streams = limit(of: endpoint)
        }
        return claims
    }

    /// Tries how many of an endpoint's streams the host has. It is the host's controller that decides,
    /// and nothing else tells.
    private func limit(of endpoint: StreamEndpoint) -> StreamLimit? {
        func choose(_ setting: UInt8) -> Bool {
            unsafe libusb_set_interface_alt_setting(
                pointer.raw, CInt(endpoint.interface), CInt(setting)) == 0
        }
        // Endpoints are there in their setting only; a driver of the host's would do the same.
        if endpoint.setting != 0 && !choose(endpoint.setting) { return nil }
        var address = endpoint.address
        let granted = unsafe libusb_alloc_streams(
            pointer.raw, UInt32(endpoint.offered), &address, 1)
        if granted >= 0 { _ = unsafe libusb_free_streams(pointer.raw, &address, 1) }
        if endpoint.setting != 0 { _ = choose(0) }
        if LibUSBError(rawValue: granted) == .noDevice { return nil }
        return StreamLimit(granted: Int(granted), of: endpoint.offered)
    }

    private func claimAll() -> Claims {
        var claims = Claims()
        let interfaces: [UInt8]
        do throws(LibUSBError) {
            interfaces = try activeConfiguration()?.interfaces ?? []
        } catch {
            return Claims(isGone: true)
        }
        for number in interfaces {
            do throws(LibUSBError) {
                try claim(number)
                claims.claimed.append(number)
            } catch {
                if error == .noDevice { claims.isGone = true }
                claims.problems.append(
                    "interface \(number) cannot be claimed: \(error)\(holder(of: number))")
            }
        }
        let claimed = claims.claimed
        state.withLock { $0.claimed = claimed }
        return claims
    }

    private func claim(_ number: UInt8) throws(LibUSBError) {
        do throws(LibUSBError) {
            try libusb { unsafe libusb_detach_kernel_driver(pointer.raw, CInt(number)) }
            state.withLock { state in
                if !state.borrowed.contains(number) { state.borrowed.append(number) }
            }
        } catch {
            // Mostly there is no driver to detach; if there is one, claiming fails and says so.
            if error == .noDevice { throw error }
        }
        try libusb { unsafe libusb_claim_interface(pointer.raw, CInt(number)) }
    }

    /// Who has an interface: a driver of the kernel's, or a program by way of usbfs.
    private func holder(of number: UInt8) -> String {
        guard let driver = SystemFiles.driver(ofInterface: number, of: portPath) else { return "" }
        let programs = driver == "usbfs" ? SystemFiles.holders(ofNode: node) : []
        return " (held by '\(driver)'"
            + (programs.isEmpty ? "" : ", in use by \(programs.joined(separator: ", "))") + ")"
    }

    private func releaseAll() {
        let claimed = state.withLock { state in
            defer { state.claimed = [] }
            return state.claimed
        }
        for number in claimed { _ = unsafe libusb_release_interface(pointer.raw, CInt(number)) }
    }

    /// The configuration that the device is in, with the interfaces that the kernel may have made of
    /// it; `nil` if it is in none. The one error is that the device is gone.
    private func activeConfiguration() throws(LibUSBError) -> (
        value: UInt8, interfaces: [UInt8]
    )? {
        var number: CInt = 0
        do throws(LibUSBError) {
            try libusb { unsafe libusb_get_configuration(pointer.raw, &number) }
        } catch {
            if error == .noDevice { throw error }
            return nil
        }
        guard let value = UInt8(exactly: number), value != 0 else { return nil }
        // As the kernel does, the first of this value is taken if a device has several.
        let outline = ConfigurationOutline.all(in: SystemFiles.descriptors(of: portPath))
            .first { $0.value == value }
        return (value, outline?.interfaces.map(\.number) ?? [])
    }

    // MARK: - Operations

    func perform(_ operation: DeviceOperation) -> DeviceOperation.Outcome {
        switch operation {
        case .setConfiguration(let value):
            return setConfiguration(value)
        case .setInterface(let number, let setting):
            freeStreams()
            return Self.outcome(of: "setting \(setting) of interface \(number)") {
                unsafe libusb_set_interface_alt_setting(
                    pointer.raw, CInt(number), CInt(setting))
            }
        case .clearHalt(let endpoint):
            return Self.outcome(of: "an endpoint without its halt") {
                unsafe libusb_clear_halt(pointer.raw, endpoint.rawValue)
            }
        case .reset:
            return reset()
        case .allocateStreams(let endpoint, let count):
            return allocateStreams(endpoint, count: count)
        case .freeStreams(let endpoint):
            freeStreams([endpoint.rawValue])
            return .init(result: .done)
        }
    }

    /// The kernel refuses an endpoint that has streams already, so those go first.
    private func allocateStreams(
        _ endpoint: EndpointAddress, count: Int
    ) -> DeviceOperation.Outcome {
        var address = endpoint.rawValue
        freeStreams([address])
        do throws(LibUSBError) {
            let granted = try libusb {
                unsafe libusb_alloc_streams(pointer.raw, UInt32(clamping: count), &address, 1)
            }
            state.withLock { $0.streamed.append(address) }
            // The guest's controller asks for as many as fit into the guest's array, which is of a power
            // of two. What the guest was offered is there (``StreamLimit``).
            return .init(
                result: granted > 0 ? .done : .refused,
                notes: ["endpoint \(endpoint.number) has \(granted) streams; asked for \(count)"])
        } catch {
            return .init(
                result: error == .noDevice ? .disconnected : .refused,
                warnings: ["the host has no streams for endpoint \(endpoint.number): \(error)"])
        }
    }

    /// Takes streams from those of these endpoints that have them; without `addresses` from all, which
    /// is due before anything that changes the endpoints under them.
    private func freeStreams(_ addresses: [UInt8]? = nil) {
        let streamed = state.withLock { state in
            let freed = state.streamed.filter { addresses?.contains($0) ?? true }
            state.streamed.removeAll { freed.contains($0) }
            return freed
        }
        for address in streamed {
            var address = address
            _ = unsafe libusb_free_streams(pointer.raw, &address, 1)
        }
    }

    /// The kernel sets a configuration only while nobody has an interface. For the one that is
    /// active it resets endpoints and settings, as the device does, and binds no driver.
    private func setConfiguration(_ value: UInt8) -> DeviceOperation.Outcome {
        // A driver that came to the device after us would make the kernel refuse.
        if claimAll().isGone { return .init(result: .disconnected) }
        freeStreams()
        releaseAll()
        // libusb's word for "none" is -1: a device may, against the rules, have a configuration 0.
        var outcome = Self.outcome(of: "configuration \(value)") {
            unsafe libusb_set_configuration(pointer.raw, value == 0 ? -1 : CInt(value))
        }
        if outcome.result == .disconnected { return outcome }
        let claims = claimAll()
        if claims.isGone { return .init(result: .disconnected) }
        if outcome.result == .refused, !claims.problems.isEmpty,
            (try? activeConfiguration())?.value == value
        {
            // Somebody keeps an interface, so the kernel refuses. The device is in that
            // configuration anyway, and the interfaces that are ours are of use to the guest.
            outcome.result = .done
        }
        outcome.warnings += claims.problems
        return outcome
    }

    private func reset() -> DeviceOperation.Outcome {
        freeStreams()
        do throws(LibUSBError) {
            try libusb { unsafe libusb_reset_device(pointer.raw) }
            return .init(result: .done)
        } catch {
            switch error {
            // After the reset it was another device, or its interfaces are not to be had again.
            case .notFound, .noDevice: return .init(result: .disconnected)
            default: return .init(result: .refused, warnings: ["reset failed: \(error)"])
            }
        }
    }

    /// Makes a call that changes the device to have `what`.
    static func outcome(of what: String, _ call: () -> CInt) -> DeviceOperation.Outcome {
        // libusb has no word of its own for the lack of bandwidth.
        errno = 0
        let result = call()
        let cause = errno
        switch LibUSBError(rawValue: result) {
        case _ where result >= 0: return .init(result: .done)
        case .noDevice: return .init(result: .disconnected)
        case .other where cause == ENOSPC:
            return .init(result: .refused, warnings: [Diagnosis.noBandwidth(what)])
        default: return .init(result: .refused)
        }
    }

    // MARK: - The end

    /// Leaves the device as it was found: in its configuration, with the host's drivers, and reset
    /// if a guest has spoken to it.
    func giveBack(resetting: Bool) {
        let (original, borrowed) = state.withLock { ($0.original, $0.borrowed) }
        freeStreams()
        if resetting { _ = unsafe libusb_reset_device(pointer.raw) }
        releaseAll()
        if let original, (try? activeConfiguration())?.value != original {
            _ = unsafe libusb_set_configuration(pointer.raw, CInt(original))
        }
        for number in borrowed { _ = unsafe libusb_attach_kernel_driver(pointer.raw, CInt(number)) }
        state.withLock { $0.isGivenBack = true }
    }
}
