// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform
internal import USB

/// The blocking calls on an opened device: claims, configurations, resets.
///
/// One thread uses this object at a time: the loop's while the server starts, later those of the
/// device's ``SerialQueue``. The object records the claimed interfaces, and those whose driver was
/// detached.
final class DeviceControl: Sendable {
    private struct State {
        /// Numbers of the claimed interfaces.
        var claimed: [UInt8] = []
        /// Numbers of the interfaces whose kernel driver was detached; it is attached again at the
        /// end.
        var withoutDriver: [UInt8] = []
        /// The configuration that the host had set.
        var originalConfiguration: UInt8?
        /// Addresses of the endpoints that have streams.
        var withStreams: [UInt8] = []
        var isReleased = false
    }

    private let pointer: LibUSBHandle.Pointer
    /// The device's directory in sysfs and its node, to find the driver of an interface.
    private let portPath: String
    private let node: String
    private let state = Locked(State())

    init(_ pointer: LibUSBHandle.Pointer, portPath: String, node: String) {
        self.pointer = pointer
        self.portPath = portPath
        self.node = node
    }

    /// Whether ``release(resetting:)`` has ended.
    var isReleased: Bool { state.withLock { $0.isReleased } }

    func close() { pointer.close() }

    // MARK: - Claims

    /// The result of claiming the interfaces of a configuration.
    struct Claims: Equatable {
        var claimed: [UInt8] = []
        /// A sentence for each interface that cannot be claimed.
        var problems: [String] = []
        var isDisconnected = false
        /// Set if the host has fewer streams than the device.
        var streamLimit: StreamLimit?
        var endpoints = InterfaceEndpoints(in: [])
    }

    /// Claims all interfaces of the configuration that the host has set.
    func claimDevice() -> Claims {
        let active: UInt8?
        do throws(LibUSBError) {
            active = try activeConfiguration()?.value
        } catch {
            return Claims(isDisconnected: true)
        }
        state.withLock { $0.originalConfiguration = active }
        var claims = claimInterfaces()
        let descriptors = SystemFiles.descriptors(of: portPath)
        claims.endpoints = InterfaceEndpoints(in: descriptors)
        let endpoint = active.flatMap {
            StreamEndpoint.greatest(in: descriptors, configuration: $0)
        }
        if let endpoint, claims.claimed.contains(endpoint.interface) {
            claims.streamLimit = streamLimit(of: endpoint)
        }
        return claims
    }

    /// Tests how many streams of an endpoint the host's controller can allocate: usbfs has no call
    /// for this number.
    private func streamLimit(of endpoint: StreamEndpoint) -> StreamLimit? {
        func select(_ setting: UInt8) -> Bool {
            unsafe libusb_set_interface_alt_setting(
                pointer.raw, CInt(endpoint.interface), CInt(setting)) == 0
        }
        // An endpoint exists only while its alternate setting is selected.
        if endpoint.setting != 0 && !select(endpoint.setting) { return nil }
        var address = endpoint.address.rawValue
        let granted = unsafe libusb_alloc_streams(
            pointer.raw, UInt32(endpoint.offered), &address, 1)
        if granted >= 0 { _ = unsafe libusb_free_streams(pointer.raw, &address, 1) }
        if endpoint.setting != 0 { _ = select(0) }
        if LibUSBError(rawValue: granted) == .noDevice { return nil }
        return StreamLimit(granted: Int(granted), of: endpoint.offered)
    }

    private func claimInterfaces() -> Claims {
        var claims = Claims()
        let interfaces: [UInt8]
        do throws(LibUSBError) {
            interfaces = try activeConfiguration()?.interfaces ?? []
        } catch {
            return Claims(isDisconnected: true)
        }
        for number in interfaces {
            do throws(LibUSBError) {
                try claim(number)
                claims.claimed.append(number)
            } catch {
                if error == .noDevice { claims.isDisconnected = true }
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
                if !state.withoutDriver.contains(number) { state.withoutDriver.append(number) }
            }
        } catch {
            // Usually the interface has no driver. If it has one, claiming fails with the reason.
            if error == .noDevice { throw error }
        }
        try libusb { unsafe libusb_claim_interface(pointer.raw, CInt(number)) }
    }

    /// The driver of an interface as a part of a message; for usbfs also the programs that use the
    /// device.
    private func holder(of number: UInt8) -> String {
        guard let driver = SystemFiles.driver(ofInterface: number, of: portPath) else { return "" }
        let programs = driver == "usbfs" ? SystemFiles.holders(ofNode: node) : []
        return " (held by '\(driver)'"
            + (programs.isEmpty ? "" : ", in use by \(programs.joined(separator: ", "))") + ")"
    }

    private func releaseInterfaces() {
        let claimed = state.withLock { state in
            defer { state.claimed = [] }
            return state.claimed
        }
        for number in claimed { _ = unsafe libusb_release_interface(pointer.raw, CInt(number)) }
    }

    /// The device's configuration and its interfaces; `nil` if the device is unconfigured.
    ///
    /// - Throws: only ``LibUSBError/noDevice``.
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
        // As in the kernel, the first configuration with this value counts.
        let configuration = ConfigurationDescriptor.all(in: SystemFiles.descriptors(of: portPath))
            .first { $0.value == value }
        return (value, configuration?.interfaceNumbers ?? [])
    }

    // MARK: - Operations

    func run(_ operation: DeviceOperation) -> DeviceOperation.Outcome {
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
            return Self.outcome(of: "endpoint \(endpoint.number)") {
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

    /// Allocates streams. The kernel refuses an endpoint that has streams, so frees those first.
    private func allocateStreams(
        _ endpoint: EndpointAddress, count: Int
    ) -> DeviceOperation.Outcome {
        var address = endpoint.rawValue
        freeStreams([address])
        do throws(LibUSBError) {
            let granted = try libusb {
                unsafe libusb_alloc_streams(pointer.raw, UInt32(clamping: count), &address, 1)
            }
            state.withLock { $0.withStreams.append(address) }
            // The guest's controller asks for the size of the stream array, a power of two, which
            // may exceed the grant. The host has the streams that the descriptors offer
            // (``StreamLimit``).
            return .init(
                result: granted > 0 ? .done : .refused,
                details: ["endpoint \(endpoint.number) has \(granted) of \(count) streams"])
        } catch {
            return .init(
                result: error == .noDevice ? .disconnected : .refused,
                warnings: ["the host has no streams for endpoint \(endpoint.number): \(error)"])
        }
    }

    /// Frees the streams of the given endpoints, or of all. Every change to the endpoints requires
    /// it.
    private func freeStreams(_ addresses: [UInt8]? = nil) {
        let freed = state.withLock { state in
            let freed = state.withStreams.filter { addresses?.contains($0) ?? true }
            state.withStreams.removeAll { freed.contains($0) }
            return freed
        }
        for address in freed {
            var address = address
            _ = unsafe libusb_free_streams(pointer.raw, &address, 1)
        }
    }

    /// Sets a configuration. The kernel refuses while an interface is claimed, so all are released.
    ///
    /// For the active configuration the kernel resets endpoints and alternate settings, as the
    /// device does, and binds no driver.
    private func setConfiguration(_ value: UInt8) -> DeviceOperation.Outcome {
        // Detaches drivers that were bound meanwhile: the kernel would refuse because of them.
        if claimInterfaces().isDisconnected { return .init(result: .disconnected) }
        freeStreams()
        releaseInterfaces()
        // For libusb -1 is "unconfigured": a non-compliant device may have a configuration 0.
        var outcome = Self.outcome(of: "configuration \(value)") {
            unsafe libusb_set_configuration(pointer.raw, value == 0 ? -1 : CInt(value))
        }
        if outcome.result == .disconnected { return outcome }
        let claims = claimInterfaces()
        if claims.isDisconnected { return .init(result: .disconnected) }
        if outcome.result == .refused, !claims.problems.isEmpty,
            (try? activeConfiguration())?.value == value
        {
            // The kernel refuses because another program has claimed an interface. The device has
            // that configuration already, so the guest can use the claimed interfaces.
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
            // The device has new descriptors, or its interfaces cannot be claimed again.
            case .notFound, .noDevice: return .init(result: .disconnected)
            default: return .init(result: .refused, warnings: ["reset failed: \(error)"])
            }
        }
    }

    /// Makes a libusb call that may need bandwidth on the host's bus.
    ///
    /// - Parameter target: the endpoints that need it, for the warning.
    static func outcome(of target: String, _ call: () -> CInt) -> DeviceOperation.Outcome {
        // libusb has no error code for a lack of bandwidth, so `errno` identifies it.
        errno = 0
        let result = call()
        let cause = errno
        switch LibUSBError(rawValue: result) {
        case _ where result >= 0: return .init(result: .done)
        case .noDevice: return .init(result: .disconnected)
        case .other where cause == ENOSPC:
            return .init(result: .refused, warnings: [Diagnosis.noBandwidth(target)])
        default: return .init(result: .refused)
        }
    }

    // MARK: - Release

    /// Restores the device for the host: its configuration and drivers, after a reset if a guest
    /// has used it.
    func release(resetting: Bool) {
        let (original, withoutDriver) = state.withLock {
            ($0.originalConfiguration, $0.withoutDriver)
        }
        freeStreams()
        if resetting { _ = unsafe libusb_reset_device(pointer.raw) }
        releaseInterfaces()
        if let original, (try? activeConfiguration())?.value != original {
            _ = unsafe libusb_set_configuration(pointer.raw, CInt(original))
        }
        for number in withoutDriver {
            _ = unsafe libusb_attach_kernel_driver(pointer.raw, CInt(number))
        }
        state.withLock { $0.isReleased = true }
    }
}
